/* The engine itself: which processor this is, memory, and the thread pool. */
#define _GNU_SOURCE
#include "internal.h"
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#define RELAX() _mm_pause()
#elif defined(__aarch64__)
#define RELAX() __asm__ volatile("yield")
#else
#define RELAX() ((void)0)
#endif
#ifdef __linux__
#include <sys/syscall.h>
#endif

/* ---- processor ---- */

#if defined(__x86_64__)
static uint64_t xcr0(void) { uint32_t a, d; __asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0)); return ((uint64_t)d << 32) | a; }
/* Linux hands out the 8 KiB of tile registers only to a process that asks (arch_prctl ARCH_REQ_XCOMP_PERM). */
static int amx_permission(void) {
#ifdef __linux__
  return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#else
  return 0;
#endif
}
static int has_amx(void) {
  uint32_t a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
  int tile = (d >> 24) & 1, bf16_tiles = (d >> 22) & 1;
  return tile && bf16_tiles && (xcr0() & 0x60000) == 0x60000 && amx_permission();
}
#endif

const char *ly_isa(void) { return LY_ISA_NAME; }
const char *ly_isa_list(void) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  int v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  int v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  int b16 = v4 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni"); /* no processor has one alone */
  if (b16 && has_amx()) return "amx,avx512bf16,avx512,avx2,portable";
  return b16 ? "avx512bf16,avx512,avx2,portable" : v4 ? "avx512,avx2,portable" : v3 ? "avx2,portable" : "portable";
#elif defined(__aarch64__)
  return "neon,portable";
#else
  return "portable";
#endif
}

const char *ly_cpu_name(void) {
  static _Thread_local char name[128];
  if (name[0]) return name;
  snprintf(name, sizeof name, "unknown processor");
  FILE *f = fopen("/proc/cpuinfo", "r");
  for (char line[512]; f && fgets(line, sizeof line, f);) {
    if (strncmp(line, "model name", 10)) continue;
    char *colon = strchr(line, ':');
    if (colon) snprintf(name, sizeof name, "%.*s", (int)strcspn(colon + 2, "\n"), colon + 2);
    break;
  }
  if (f) fclose(f);
  return name;
}

/* ---- memory ---- */

void *ly_alloc(size_t bytes) {
  if (!bytes) bytes = 1;
  void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) return NULL;
#ifdef MADV_HUGEPAGE
  if (bytes >= (4u << 20)) madvise(p, bytes, MADV_HUGEPAGE);
#endif
  return p;
}
void ly_free(void *p, size_t bytes) { if (p) munmap(p, bytes ? bytes : 1); }

void *ly_map_file(const char *path, size_t *bytes) {
  int fd = open(path, O_RDONLY);
  struct stat st;
  if (fd < 0) return NULL;
  void *p = MAP_FAILED;
  if (fstat(fd, &st) == 0 && st.st_size > 0) p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
  close(fd);
  if (p == MAP_FAILED) return NULL;
  *bytes = (size_t)st.st_size;
  return p;
}
void ly_unmap_file(void *p, size_t bytes) { munmap(p, bytes); }

/* Disk space for the whole file: on a full disk the first write to a page without it would end the process (SIGBUS). Where a system cannot
 * say (macOS, and file systems that give no room in advance) it is as before: posix_fallocate would write to every block there. */
static int has_room(int fd, size_t bytes) {
#ifdef __linux__
  int failed;
  do failed = fallocate(fd, 0, 0, (off_t)bytes); while (failed && errno == EINTR);
  return !failed || (errno != ENOSPC && errno != EDQUOT && errno != EFBIG);
#else
  (void)fd, (void)bytes;
  return 1;
#endif
}
/* State on disk. ly_advise_state works on the whole pages inside the range: a page that two ranges share stays. */
void *ly_map_state(const char *path, size_t bytes) {
  int fd = open(path, O_RDWR);
  if (fd < 0) return NULL;
  unlink(path); /* before anything that takes time: whatever ends the process now ends the file */
  void *p = has_room(fd, bytes) ? mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : MAP_FAILED;
  close(fd);
  return p == MAP_FAILED ? NULL : p;
}
void ly_advise_state(void *p, size_t bytes, int needed) {
  uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), from = (uintptr_t)p, to = from + bytes;
  if (needed) { from -= from % page; madvise((void *)from, to - from, MADV_WILLNEED); return; }
  from = (from + page - 1) / page * page;
  to = to / page * page;
  if (to <= from) return;
  msync((void *)from, to - from, MS_ASYNC);
  madvise((void *)from, to - from, MADV_DONTNEED); /* of a shared mapping: the pages are the file's, nothing is lost */
}

/* ---- threads: the caller is thread 0, the others spin briefly for the next kernel, then sleep ---- */

enum { SLOTS = 32, SPINS = 4000 };
enum { ITEM_BITS = 20, ITEMS = 1 << ITEM_BITS };
/* Each thread of the program that opens the engine has a pool of its own, with its own scratch: what several of them (Node's worker threads) compute at the same
 * time does not meet. It goes when the thread ends. */
typedef struct pool pool;
struct pool {
  int threads, workers;
  struct { pthread_t handle; pool *of; } seats[MAX_THREADS];
  pthread_mutex_t lock;
  pthread_cond_t wake;
  /* What one thread waits for and another writes has a cache line of its own: each line that changes its core costs a tenth of a microsecond, and a small kernel takes one. */
  _Alignas(64) struct { atomic_long generation; _Atomic(ly_body) body; void *_Atomic ctx; _Atomic int64_t n; atomic_int backward; } job;
  _Alignas(64) atomic_int sleeping;
  atomic_int stop;
  /* Each thread's part of the items, as far as nobody has taken them: the round's number << 40 | the first << 20 | the end. The owner takes from one side; who has
   * none left takes from the other side of others' parts (affinity scheduling, Markatos & LeBlanc 1994). An item is taken by exchanging the exact value that was
   * there before the job was read: whoever is late, because another process had his core, finds another round and takes nothing. So a round is over when its
   * items are done, and nobody has to come by and say that he had none. */
  struct { _Alignas(64) _Atomic uint64_t left; } parts[MAX_THREADS];
  _Alignas(64) _Atomic int64_t done;
  /* What the owner alone counts, in every kernel: beside what the others read, it cost a small kernel a microsecond. */
  _Alignas(64) uint64_t round;
  int backward;
  /* Per thread and slot, grown to the largest request and kept. */
  _Alignas(64) struct { void *p; size_t bytes; } scratch[MAX_THREADS + 1][SLOTS];
};
/* Of the thread that asks: its own, or the one that it works for. */
static _Thread_local pool *mine;
/* Of more items than fit there, several are taken at a time. */
static int64_t per_item(int64_t n) { return (n + ITEMS - 2) / (ITEMS - 1); }

static void work(pool *p, int thread) {
  int64_t taken = 0;
  for (int away = 0; away < p->threads;) {
    _Atomic uint64_t *part = &p->parts[(thread + away) % p->threads].left;
    uint64_t t = atomic_load_explicit(part, memory_order_acquire);
    ly_body body = atomic_load_explicit(&p->job.body, memory_order_relaxed);
    void *ctx = atomic_load_explicit(&p->job.ctx, memory_order_relaxed);
    int64_t n = atomic_load_explicit(&p->job.n, memory_order_relaxed), each = per_item(n), first = (int64_t)(t >> ITEM_BITS) % ITEMS, end = (int64_t)(t % ITEMS);
    int front = atomic_load_explicit(&p->job.backward, memory_order_relaxed) == (away > 0);
    if (first >= end) { away++; continue; }
    if (!atomic_compare_exchange_weak(part, &t, front ? t + ITEMS : t - 1)) continue;
    int64_t from = (front ? first : end - 1) * each, to = from + each < n ? from + each : n;
    for (int64_t i = from; i < to; i++) body(ctx, i, thread);
    taken += to - from;
  }
  if (taken) atomic_fetch_add(&p->done, taken);
}

static void *worker(void *seat) {
  pool *p = mine = ((typeof(p->seats[0]) *)seat)->of;
  int thread = (int)((typeof(p->seats[0]) *)seat - p->seats);
  long seen = 0;
  for (;;) {
    for (int s = 0; s < SPINS && atomic_load(&p->job.generation) == seen; s++) RELAX();
    if (atomic_load(&p->job.generation) == seen) {
      pthread_mutex_lock(&p->lock);
      atomic_fetch_add(&p->sleeping, 1);
      while (atomic_load(&p->job.generation) == seen) pthread_cond_wait(&p->wake, &p->lock);
      atomic_fetch_sub(&p->sleeping, 1);
      pthread_mutex_unlock(&p->lock);
    }
    seen = atomic_load(&p->job.generation);
    if (atomic_load(&p->stop)) return NULL;
    work(p, thread);
  }
}

/* Who goes to sleep says so and then looks again whether there is a new round; here it is the other way round, so one of the two notices. */
static void start_round(pool *p) {
  atomic_fetch_add(&p->job.generation, 1);
  if (!atomic_load(&p->sleeping)) return;
  pthread_mutex_lock(&p->lock);
  pthread_cond_broadcast(&p->wake);
  pthread_mutex_unlock(&p->lock);
}

static void dismiss(pool *p) {
  if (!p->workers) return;
  atomic_store(&p->stop, 1);
  start_round(p);
  for (int i = 1; i <= p->workers; i++) pthread_join(p->seats[i].handle, NULL);
  atomic_store(&p->stop, 0);
  atomic_store(&p->job.generation, 0);
  p->workers = 0;
}

/* When the thread whose pool it is ends. */
static pthread_key_t thread_ends;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static void close_pool(void *of) {
  pool *p = of;
  dismiss(p);
  for (int t = 0; t <= MAX_THREADS; t++)
    for (int slot = 0; slot < SLOTS; slot++) ly_free(p->scratch[t][slot].p, p->scratch[t][slot].bytes);
  pthread_cond_destroy(&p->wake);
  pthread_mutex_destroy(&p->lock);
  ly_free(p, sizeof *p);
}
static void make_key(void) { pthread_key_create(&thread_ends, close_pool); }

static void out_of_memory(size_t bytes) {
  fprintf(stderr, "lyceum: out of memory: %zu MiB of scratch could not be allocated\n", bytes >> 20);
  abort();
}

/* The pool of the thread that asks; until ly_init it is that thread alone. */
static pool *own(void) {
  if (mine) return mine;
  pool *p = ly_alloc(sizeof *p);
  if (!p) out_of_memory(sizeof *p);
  p->threads = 1;
  pthread_mutex_init(&p->lock, NULL);
  pthread_cond_init(&p->wake, NULL);
  pthread_once(&once, make_key);
  pthread_setspecific(thread_ends, p);
  return mine = p;
}

int64_t ly_part(int64_t n, int thread) { return n * thread / own()->threads; }

static void run(pool *p, int64_t n, ly_body body, void *ctx, int backward) {
  if (n <= 1 || p->workers == 0) {
    for (int64_t i = 0; i < n; i++) body(ctx, i, 0);
    return;
  }
  int64_t each = per_item(n), items = (n + each - 1) / each;
  /* Nothing is left to take while the job changes; who takes an item has seen the job that was there before it. No store waits for the one before, each of which may be in
   * another core's cache. */
  atomic_store_explicit(&p->job.body, body, memory_order_relaxed); atomic_store_explicit(&p->job.ctx, ctx, memory_order_relaxed);
  atomic_store_explicit(&p->job.n, n, memory_order_relaxed); atomic_store_explicit(&p->job.backward, backward, memory_order_relaxed);
  atomic_store_explicit(&p->done, 0, memory_order_relaxed);
  p->round++;
  for (int t = 0; t < p->threads; t++)
    atomic_store_explicit(&p->parts[t].left, p->round << 2 * ITEM_BITS | (uint64_t)ly_part(items, t) << ITEM_BITS | (uint64_t)ly_part(items, t + 1), memory_order_release);
  start_round(p);
  work(p, 0);
  for (int s = 0; atomic_load(&p->done) < n; s++) { if (s < 20000) RELAX(); else sched_yield(); }
}
void ly_in_order(int64_t n, ly_body body, void *ctx) { run(own(), n, body, ctx, 0); }
void ly_parallel(int64_t n, ly_body body, void *ctx) {
  pool *p = own();
  run(p, n, body, ctx, p->backward = !p->backward);
}

int ly_threads(void) { return own()->threads; }

int ly_init(int wanted) {
  if (!strstr(ly_isa_list(), LY_ISA_NAME)) return -1;
  if (wanted <= 0) {
#ifdef __linux__
    cpu_set_t set;
    wanted = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
#else
    wanted = (int)sysconf(_SC_NPROCESSORS_ONLN);
#endif
  }
  if (wanted > MAX_THREADS) wanted = MAX_THREADS;
  pool *p = own();
  dismiss(p);
  p->threads = wanted;
  for (int t = 1; t < wanted; t++, p->workers++) {
    p->seats[t].of = p;
    if (pthread_create(&p->seats[t].handle, NULL, worker, &p->seats[t])) { p->threads = t; break; }
  }
  return 0;
}

void *ly_scratch(int thread, int slot, size_t bytes) {
  typeof(mine->scratch[0][0]) *s = &own()->scratch[thread + 1][slot];
  if (s->bytes < bytes) {
    ly_free(s->p, s->bytes);
    s->bytes = (bytes + bytes / 4 + 4095) & ~(size_t)4095;
    s->p = ly_alloc(s->bytes);
    if (!s->p) out_of_memory(bytes);
  }
  return s->p;
}
