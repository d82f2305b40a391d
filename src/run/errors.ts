/** A mistake of the user's: printed as one paragraph without a stack trace. Exit code 2: usage or config; 1: failure. */
export class UserError extends Error {
  constructor(
    message: string,
    readonly exitCode: 1 | 2 = 1,
  ) {
    super(message);
    this.name = "UserError";
  }
}
