/** `lyceum launch -n N -- COMMAND ...`: starts a command on N processes with the installed mpirun. */
import { spawn, spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { constants } from "node:os";
import { fileURLToPath } from "node:url";
import { UserError } from "../run/errors.js";
import { whole } from "./flags.js";

export interface LaunchFlags {
  n: string;
  hosts?: string;
  hostfile?: string;
}

/** Environment variables that the processes on other hosts need as well. */
const PASSED = ["LYCEUM_ISA", "LYCEUM_MPI_TIMEOUT", "LYCEUM_MPI_LIBRARY", "LYCEUM_DEBUG"];

/** Commands that share out their work; of any other, each process would do all of it. (`run` refuses by itself, and says why.) */
const SHARED = /^(pretrain|sft|reward|prefer|ppo|grpo|dpo|run|corpus build|tokenizer train)$/;

export async function command(args: readonly string[], flags: LaunchFlags): Promise<void> {
  const [name, part] = args;
  const told = ["corpus", "tokenizer"].includes(name) ? `${name} ${part}` : name;
  if (!SHARED.test(told) && !args.includes("--help"))
    throw new UserError(
      `Several processes share the work of a training stage, of corpus build and of tokenizer train; ${told} is none of these: start it without launch.`,
      2,
    );
  if (flags.hostfile !== undefined && !existsSync(flags.hostfile))
    throw new UserError(`--hostfile ${flags.hostfile} does not exist.`, 2);
  const processes = whole("-n", flags.n, 1);
  const version = spawnSync("mpirun", ["--version"], { encoding: "utf8" });
  if (version.status !== 0)
    throw new UserError(
      "mpirun was not found. Install Open MPI (Debian, Ubuntu: apt-get install openmpi-bin libopenmpi3; Fedora: dnf install openmpi; macOS: brew install open-mpi) or MPICH.",
    );
  const openmpi = version.stdout.includes("Open MPI");
  const start = [
    ...(flags.hosts ? ["--host", flags.hosts] : []),
    ...(flags.hostfile ? ["--hostfile", flags.hostfile] : []),
    // More processes than cores are the user's wish; and each has threads of its own, so none is bound to one core.
    ...(openmpi ? ["--oversubscribe", "--bind-to", "none"] : []),
    ...(openmpi ? PASSED.filter((name) => process.env[name] !== undefined).flatMap((name) => ["-x", name]) : []),
    ...["-np", String(processes)],
  ];
  const main = fileURLToPath(new URL("./main.js", import.meta.url));
  // mpirun refuses root unless told; in a container root is the only user there is.
  const root = process.getuid?.() === 0 ? { OMPI_ALLOW_RUN_AS_ROOT: "1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM: "1" } : {};
  const child = spawn("mpirun", [...start, process.execPath, main, ...args], {
    stdio: "inherit",
    env: { ...process.env, ...root },
    detached: true, // what is typed at the terminal (Ctrl-C, Ctrl-Z) comes here, and not to mpirun
  });
  // The first time all processes are asked to save and stop, which takes them a step, by the signal that this mpirun
  // hands on to them. On SIGINT and SIGTERM Open MPI's gives them a second; MPICH's dies of SIGUSR2.
  const request = openmpi ? "SIGUSR2" : "SIGINT";
  let asked = 0;
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR2"] as const)
    process.on(signal, () => {
      child.kill(asked > 0 ? signal : request);
      asked++;
    });
  // The other signals that a terminal sends. SIGQUIT kills Open MPI's mpirun before it has cleared up.
  process.on("SIGQUIT", () => child.kill(openmpi ? "SIGTERM" : "SIGQUIT"));
  process.on("SIGTSTP", () => {
    child.kill("SIGTSTP");
    process.kill(process.pid, "SIGSTOP");
  });
  process.on("SIGCONT", () => child.kill("SIGCONT"));
  process.on("exit", () => child.kill());
  const code = await new Promise<number>((resolve) => child.on("exit", (code) => resolve(code ?? 1)));
  // A process that did not listen yet is killed by the request: the exit code is 128 and the signal's number, MPICH's the number alone.
  const number = constants.signals[request];
  const stopped = asked > 1 || (asked === 1 && [number, 128 + number].includes(code));
  process.exitCode = stopped ? 130 : code;
}
