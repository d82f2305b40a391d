/** Errors with a meaning for the program. */

/** A mistake of the user's: printed as one paragraph without a stack trace. Exit code 2: usage or config; 1: failure. */
export class UserError extends Error {
  constructor(
    message: string,
    readonly exitCode: number = 1,
  ) {
    super(message);
    this.name = "UserError";
  }
}

/** What a code of the operating system means, said of a file or folder. */
const SYSTEM: Record<string, string> = {
  ENOSPC:
    "could not be written: the disk is full. Free some space and start again (a run goes on from its last checkpoint with --resume)",
  EDQUOT: "could not be written: your share of the disk is used up",
  EACCES: "may not be read or written by you",
  EPERM: "may not be changed: the system does not permit it",
  EROFS: "cannot be written: its file system is read-only",
  ENOENT: "does not exist",
  EISDIR: "is a folder, where a file is meant",
  ENOTDIR: "cannot be there: a part of that path is a file, where a folder is meant",
  EEXIST: "is there already, and is not what is meant",
  ENOTEMPTY: "is a folder that is not empty",
  ENAMETOOLONG: "cannot be there: the name is too long",
  ELOOP: "cannot be found: its links go in a circle",
  EMFILE: "cannot be opened: too many files are open (see ulimit -n)",
  EIO: "could not be read or written: the disk has a fault",
};

/**
 * The message of an error that the operating system gave (a full disk, a file that may not be read): it is about the
 * user's files, not about the program. Undefined for any other error. `file`: what was worked on, where the error does not say.
 */
export function systemMessage(error: unknown, file?: string): string | undefined {
  if (!(error instanceof Error)) return undefined;
  const { code, path, syscall, message } = error as NodeJS.ErrnoException;
  if (code === undefined || syscall === undefined) return undefined;
  const what = path ?? file ?? "A file of this command";
  return SYSTEM[code] ? `${what} ${SYSTEM[code]}.` : `${what}: ${message}.`;
}

/** Runs `work`, whose errors of the operating system are about `path`: those of reading do not say so. */
export function naming<T>(path: string, work: () => T): T {
  try {
    return work();
  } catch (error) {
    if (error instanceof Error && "syscall" in error) (error as NodeJS.ErrnoException).path ??= path;
    throw error;
  }
}

/** A loss, gradient, reward or log-probability is NaN or infinite: thrown before it can reach the parameters. */
export class NonFiniteError extends Error {
  constructor(readonly what: string) {
    super(`${what} is not finite`);
    this.name = "NonFiniteError";
  }
}
