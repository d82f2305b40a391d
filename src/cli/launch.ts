/** `lyceum launch -n N -- COMMAND ...`: starts a command on N processes with the installed mpirun. */
import { spawn, spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { UserError } from "../run/errors.js";

export interface LaunchFlags {
  n: string;
  hosts?: string;
  hostfile?: string;
}

/** What of the environment the processes on other hosts must have as well. */
const PASSED = ["LYCEUM_ISA", "LYCEUM_MPI_TIMEOUT", "LYCEUM_MPI_LIBRARY", "LYCEUM_DEBUG"];

/** Commands that share their work; `run` says itself why it does not. Of any other each process would do all of it. */
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
  if (!/^[1-9]\d*$/.test(flags.n)) throw new UserError(`-n is "${flags.n}"; it must be a whole number above 0.`, 2);
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
    ...["-np", flags.n],
  ];
  const main = fileURLToPath(new URL("./main.js", import.meta.url));
  // mpirun refuses root unless told; in a container root is the only user there is.
  const root = process.getuid?.() === 0 ? { OMPI_ALLOW_RUN_AS_ROOT: "1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM: "1" } : {};
  const child = spawn("mpirun", [...start, process.execPath, main, ...args], {
    stdio: "inherit",
    env: { ...process.env, ...root },
    detached: true, // Ctrl-C comes here, and not to mpirun
  });
  // The first time all processes are asked to save and stop, which takes them a step: mpirun hands this signal on to them.
  // Of SIGINT and SIGTERM it gives them a second.
  let asked = false;
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const)
    process.on(signal, () => {
      child.kill(asked ? signal : "SIGUSR2");
      asked = true;
    });
  process.exitCode = await new Promise<number>((resolve) => child.on("exit", (code) => resolve(code ?? 1)));
}
