/* AMX tiles, all eight of them 16 rows of 64 bytes: the one configuration that every kernel with tiles uses. */
#ifndef LYCEUM_AMX_H
#define LYCEUM_AMX_H
#include <stdint.h>
#ifndef AMX_EMULATED
#include <immintrin.h>
#endif

/* A thread's tiles, once. */
static void amx_configure(void) {
  static __thread int done __attribute__((tls_model("initial-exec")));
  if (done) return;
  struct { uint8_t palette, start_row, reserved[14]; uint16_t colsb[16]; uint8_t rows[16]; } __attribute__((packed)) config = {.palette = 1};
  for (int t = 0; t < 8; t++) { config.colsb[t] = 64; config.rows[t] = 16; }
  _tile_loadconfig(&config);
  done = 1;
}
#endif
