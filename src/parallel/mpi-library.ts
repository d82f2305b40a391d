/**
 * The installed MPI: found (Open MPI or MPICH), loaded and started, and its functions by FFI. What they are used for is in mpi.ts.
 */
import koffi from "koffi";
import type { Device, Ptr } from "../device/device.js";
import { UserError } from "../run/errors.js";

/** Bytes of an element of `Mpi.block`: for counts of bytes above what an int holds. */
export const BLOCK = 64;

const LIBRARIES = {
  openmpi: ["libmpi.so.40", "libmpi.so.80", "libmpi.so.20", "libmpi.so", "libmpi.dylib"],
  mpich: ["libmpich.so.12", "libmpi.so.12", "libmpich.so", "libmpi.so", "libmpi.12.dylib", "libmpi.dylib"],
};
type Flavour = keyof typeof LIBRARIES;

/** Handles (addresses in Open MPI, numbers in MPICH) and functions, which return MPI's error code. */
export interface Mpi {
  flavour: Flavour;
  world: number;
  byte: number;
  block: number;
  sharedType: number;
  infoNull: number;
  statusIgnore: number;
  call: Record<
    | "split"
    | "splitShared"
    | "rank"
    | "size"
    | "alltoall"
    | "alltoallv"
    | "allgather"
    | "bcast"
    | "isend"
    | "irecv"
    | "iprobe"
    | "freeRequest"
    | "barrier"
    | "test"
    | "finalize"
    | "abort",
    (...args: number[]) => number
  >;
  explain(code: number): string;
}

let opened: Mpi | undefined;

/** Loads the library and starts MPI. Throws a UserError when there is none, saying what to install. */
export function openMpi(device: Device): Mpi {
  if (opened) return opened;
  const { library, flavour } = load();
  const openmpi = flavour === "openmpi";
  const H = openmpi ? "uintptr_t" : "int"; // handles are addresses in Open MPI, and numbers in MPICH
  const handle = (symbol: string, number: number): number =>
    openmpi ? Number(koffi.address(library.symbol(symbol))) : number;
  const world = handle("ompi_mpi_comm_world", 0x44000000);
  const byte = handle("ompi_mpi_byte", 0x4c00010d);
  const func = (name: string, args: string): ((...args: number[]) => number) => {
    const f = library.func(`int ${name}(${args.replaceAll("H", H).replaceAll("P", "uintptr_t")})`);
    return (...values) => f(...values);
  };
  const scratch = device.alloc(64);
  const word = device.i32(scratch, 16);
  // MPI_THREAD_FUNNELED: there are other threads, which never call MPI.
  const code = func("MPI_Init_thread", "P, P, int, P")(0, 0, 1, scratch);
  if (code !== 0) throw new UserError(`MPI could not start (MPI_Init_thread: ${code}).`);
  func("MPI_Comm_set_errhandler", "H, H")(world, handle("ompi_mpi_errors_return", 0x54000001));
  const blockAt = device.alloc(64);
  func("MPI_Type_contiguous", "int, H, P")(BLOCK, byte, blockAt);
  func("MPI_Type_commit", "P")(blockAt);
  const block = handleAt(device, { flavour }, blockAt);
  const freeType = func("MPI_Type_free", "P");
  const errorString = library.func("int MPI_Error_string(int, uintptr_t, uintptr_t)");
  const text = device.alloc(1024);
  opened = {
    flavour,
    world,
    byte,
    block,
    sharedType: openmpi ? 0 : 1,
    infoNull: handle("ompi_mpi_info_null", 0x1c000000),
    statusIgnore: openmpi ? 0 : 1,
    call: {
      split: func("MPI_Comm_split", "H, int, int, P"),
      splitShared: func("MPI_Comm_split_type", "H, int, int, H, P"),
      rank: func("MPI_Comm_rank", "H, P"),
      size: func("MPI_Comm_size", "H, P"),
      alltoall: func("MPI_Ialltoall", "P, int, H, P, int, H, H, P"),
      alltoallv: func("MPI_Ialltoallv", "P, P, P, H, P, P, P, H, H, P"),
      allgather: func("MPI_Iallgather", "P, int, H, P, int, H, H, P"),
      bcast: func("MPI_Ibcast", "P, int, H, int, H, P"),
      isend: func("MPI_Isend", "P, int, H, int, int, H, P"),
      irecv: func("MPI_Irecv", "P, int, H, int, int, H, P"),
      iprobe: func("MPI_Iprobe", "int, int, H, P, P"),
      freeRequest: func("MPI_Request_free", "P"),
      barrier: func("MPI_Ibarrier", "H, P"),
      test: func("MPI_Test", "P, P, P"),
      finalize: func("MPI_Finalize", ""),
      abort: func("MPI_Abort", "H, int"),
    },
    explain(code) {
      errorString(code, text, scratch);
      return Buffer.from(device.bytes(text, word[0])).toString();
    },
  };
  const mpi = opened;
  // MPI_Abort ends this process too, before Node says which error nobody caught.
  process.on("uncaughtExceptionMonitor", (error) => process.stderr.write(`${error?.stack ?? error}\n`));
  process.on("exit", (code) => {
    if (code === 0) {
      freeType(blockAt);
      mpi.call.finalize();
    } else mpi.call.abort(world, code); // the others would wait for this rank for ever
  });
  return mpi;
}

function load(): { library: ReturnType<typeof koffi.load>; flavour: Flavour } {
  const named = process.env.LYCEUM_MPI_LIBRARY;
  // Under a launcher the library must be the launcher's own.
  const order: Flavour[] = process.env.PMI_RANK !== undefined ? ["mpich", "openmpi"] : ["openmpi", "mpich"];
  for (const name of named ? [named] : order.flatMap((flavour) => LIBRARIES[flavour])) {
    let library: ReturnType<typeof koffi.load>;
    try {
      library = koffi.load(name, { global: true, lazy: true });
    } catch {
      continue;
    }
    try {
      library.symbol("ompi_mpi_comm_world");
      return { library, flavour: "openmpi" };
    } catch {
      return { library, flavour: "mpich" };
    }
  }
  throw new UserError(
    named
      ? `The MPI library that LYCEUM_MPI_LIBRARY names cannot be loaded: ${named}.`
      : "No MPI library was found. Install Open MPI (Debian, Ubuntu: apt-get install openmpi-bin libopenmpi3; Fedora: dnf install openmpi; macOS: brew install open-mpi) or MPICH, or name its library in LYCEUM_MPI_LIBRARY.",
  );
}

/** The handle that a function has written at `at`. */
export const handleAt = (device: Device, { flavour }: Pick<Mpi, "flavour">, at: Ptr): number =>
  flavour === "openmpi" ? Number(new BigUint64Array(device.bytes(at, 8).slice().buffer)[0]) : device.i32(at, 1)[0];
