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

/** A loss, gradient, reward or log-probability is NaN or infinite: thrown before it can reach the parameters. */
export class NonFiniteError extends Error {
  constructor(readonly what: string) {
    super(`${what} is not finite`);
    this.name = "NonFiniteError";
  }
}
