/** Parquet by DuckDB, row by row in bounded memory. */
import { UserError } from "../../run/errors.js";
import { oversized } from "./lines.js";
import type { Limits, Position, RawRecord } from "./record.js";
import { unusable } from "./record.js";

export async function* readParquet(
  file: string,
  from: Position,
  limits: Limits,
  /** A column that must be there. */
  needed?: string,
): AsyncGenerator<{ record: RawRecord; next: number | undefined }> {
  const { DuckDBInstance } = await import("@duckdb/node-api");
  const instance = await DuckDBInstance.create(":memory:", {
    threads: "1",
    memory_limit: "512MB",
    preserve_insertion_order: "true",
  });
  const connection = await instance.connect();
  try {
    // As a name and not as a pattern: a bracket stands for itself in brackets.
    const quoted = `'${file.replace(/[[*?]/g, "[$&]").replaceAll("'", "''")}'`;
    let columns: [string, string][];
    try {
      const described = await connection.runAndReadAll(`DESCRIBE SELECT * FROM read_parquet(${quoted})`);
      columns = described.getRows().map((row) => [String(row[0]), String(row[1])]);
    } catch (error) {
      yield {
        record: unusable(file, 1, `not a readable Parquet file: ${(error as Error).message.split("\n")[0]}`),
        next: undefined,
      };
      return;
    }
    if (needed !== undefined && !columns.some(([name]) => name === needed))
      throw new UserError(
        `${file} has no column "${needed}". Its columns are: ${columns.map(([name, type]) => `${name} (${type})`).join(", ")}. Rename the one that holds the text.`,
        2,
      );
    // One JSON object a row, so that every record is treated as a JSONL line is from here on.
    const fields = columns.map(([name]) => `"${name.replaceAll('"', '""')}"`).join(", ");
    const keys = columns.map(([name]) => `'${name.replaceAll("'", "''")}', "${name.replaceAll('"', '""')}"`).join(", ");
    const query = `SELECT json_object(${keys})::VARCHAR FROM (SELECT ${fields} FROM read_parquet(${quoted}) OFFSET ${from.records})`;
    let result: Awaited<ReturnType<typeof connection.stream>> | undefined;
    const fractions = columns.some(([, type]) => /FLOAT|DOUBLE/.test(type));
    let line = from.records;
    for (;;) {
      let values: unknown[];
      try {
        result ??= await connection.stream(query);
        const chunk = await result.fetchChunk();
        values = chunk && chunk.rowCount > 0 ? chunk.getColumnValues(0) : [];
      } catch (error) {
        const reason = (error as Error).message.split("\n")[0];
        yield { record: unusable(file, line + 1, `the Parquet file cannot be read on: ${reason}`), next: undefined };
        return;
      }
      if (values.length === 0) break;
      for (const value of values) {
        line++;
        const bytes = Buffer.from(fractions ? withoutNaN(String(value)) : String(value));
        const record: RawRecord =
          bytes.length > limits.maxRecordBytes
            ? unusable(file, line, oversized(bytes.length, limits))
            : { kind: "json", bytes, file, line };
        yield { record, next: undefined };
      }
    }
  } finally {
    connection.closeSync();
    instance.closeSync();
  }
}

/** DuckDB writes what is no number as it is called; JSON has null for it. What stands in strings stays. */
function withoutNaN(json: string): string {
  if (!/nan|inf/i.test(json)) return json;
  let out = "";
  for (let at = 0; at < json.length; ) {
    const quote = json.indexOf('"', at);
    const string = quote < 0 ? json.length : quote;
    out += json.slice(at, string).replace(/-?\b(?:nan|inf(?:inity)?)\b/gi, "null");
    let end = string + 1;
    while (end < json.length && json[end] !== '"') end += json[end] === "\\" ? 2 : 1;
    at = end + 1;
    out += json.slice(string, at);
  }
  return out;
}
