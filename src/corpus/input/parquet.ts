/** Parquet by DuckDB, row by row in bounded memory. Column names: text, and id, url, language where there are such. */
import { UserError } from "../../run/errors.js";
import { oversized } from "./lines.js";
import type { Limits, Position, RawRecord } from "./record.js";
import { unusable } from "./record.js";

export async function* readParquet(
  file: string,
  from: Position,
  limits: Limits,
): AsyncGenerator<{ record: RawRecord; next: number | undefined }> {
  const { DuckDBInstance } = await import("@duckdb/node-api");
  const instance = await DuckDBInstance.create(":memory:", {
    threads: "1",
    memory_limit: "512MB",
    preserve_insertion_order: "true",
  });
  const connection = await instance.connect();
  try {
    const quoted = `'${file.replaceAll("'", "''")}'`;
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
    if (!columns.some(([name]) => name === "text"))
      throw new UserError(
        `${file} has no column "text". Its columns are: ${columns.map(([name, type]) => `${name} (${type})`).join(", ")}. Rename the one that holds the text.`,
        2,
      );
    // One JSON object a row, so that every record is treated as a JSONL line is from here on.
    const fields = columns.map(([name]) => `"${name.replaceAll('"', '""')}"`).join(", ");
    const keys = columns.map(([name]) => `'${name.replaceAll("'", "''")}', "${name.replaceAll('"', '""')}"`).join(", ");
    const result = await connection.stream(
      `SELECT json_object(${keys})::VARCHAR FROM (SELECT ${fields} FROM read_parquet(${quoted}) OFFSET ${from.records})`,
    );
    let line = from.records;
    for (;;) {
      const chunk = await result.fetchChunk();
      if (!chunk || chunk.rowCount === 0) break;
      for (const value of chunk.getColumnValues(0)) {
        line++;
        const bytes = Buffer.from(String(value));
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
