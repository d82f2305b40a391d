/**
 * Who waits, and who is missing. A rank that has waited for a while says so to all others of the job, and says it again
 * when it goes on: what it said last is what it does. So nobody takes for missing who only waits for somebody else, in
 * whichever group of ranks that is.
 */
import type { Device, Ptr } from "../device/device.js";
import type { Mpi } from "./mpi-library.js";

/** Tag of these messages, among all ranks. Not to be used for others. */
const WAITING = 32000;
/** Milliseconds of a wait after which a rank says that it waits, or half its limit. */
export const SPEAKS = 2000;
/** Milliseconds to hear others in. More than SPEAKS: who had begun to wait by then has said so. */
const PATIENCE = 3000;
/** Milliseconds between two times that a rank hears others while it does not wait itself. */
const LISTENS = 1000;

export class Waiting {
  /** Of every rank of the job. */
  hosts: string[] = [];
  private readonly waiting = new Set<number>();
  /** What is sent (a byte of 0, and one of 1; they never change, so nobody waits for a message to have left), and where one is received. */
  private readonly words: Ptr;
  private readonly request: Ptr;
  private readonly flag: Int32Array;
  private heard = 0;

  constructor(
    private readonly device: Device,
    private readonly mpi: Mpi,
    readonly rank: number,
  ) {
    this.words = device.alloc(64);
    this.request = device.alloc(64); // and at byte 32 the flag of MPI_Iprobe and MPI_Test
    this.flag = device.i32(this.request + 32, 1);
    device.bytes(this.words, 2).set([0, 1]);
  }

  name(rank: number): string {
    return `rank ${rank} on ${this.hosts[rank] ?? "an unknown host"}`;
  }

  /** Tells all others that this rank waits, or that it goes on. */
  tell(waits: boolean): void {
    const { mpi, request } = this;
    this.listen();
    for (const r of this.hosts.keys()) {
      if (r === this.rank) continue;
      mpi.call.isend(this.words + (waits ? 1 : 0), 1, mpi.byte, r, WAITING, mpi.world, request);
      mpi.call.freeRequest(request);
    }
  }

  /** Those that have not said that they wait: of `among`, or where all of these wait, of the whole job. */
  missing(among: readonly number[]): number[] {
    for (const until = performance.now() + PATIENCE; performance.now() < until; ) this.listen();
    const goOn = (r: number): boolean => r !== this.rank && !this.waiting.has(r);
    const near = among.filter(goOn);
    return near.length > 0 ? near : [...this.hosts.keys()].filter(goOn);
  }

  /** What nobody receives stays in memory: the slowest rank, for which all others wait, must hear them too. */
  listenNowAndThen(): void {
    if (performance.now() - this.heard > LISTENS) this.listen();
  }

  private listen(): void {
    const { mpi, request, flag, words } = this;
    this.heard = performance.now();
    for (const r of this.hosts.keys()) {
      if (r === this.rank) continue;
      for (;;) {
        mpi.call.iprobe(r, WAITING, mpi.world, request + 32, mpi.statusIgnore);
        if (flag[0] === 0) break;
        mpi.call.irecv(words + 2, 1, mpi.byte, r, WAITING, mpi.world, request);
        do mpi.call.test(request, request + 32, mpi.statusIgnore);
        while (flag[0] === 0);
        if (this.device.bytes(words + 2, 1)[0] === 1) this.waiting.add(r);
        else this.waiting.delete(r);
      }
    }
  }
}
