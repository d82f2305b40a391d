/** Parquet by DuckDB, row by row in bounded memory. Strings that were written without saying that they are (old Spark, Impala) are texts too. */
import { isUtf8 } from "node:buffer";
import type { DuckDBType } from "@duckdb/node-api";
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
    let columns: { name: string; type: string; texts: Texts | undefined }[];
    try {
      const none = await connection.runAndReadAll(`SELECT * FROM read_parquet(${quoted}) LIMIT 0`);
      const types = none.columnTypes();
      columns = none.columnNames().map((name, i) => ({ name, type: `${types[i]}`, texts: textsIn(types[i]) }));
    } catch (error) {
      yield {
        record: unusable(file, 1, `not a readable Parquet file: ${(error as Error).message.split("\n")[0]}`),
        next: undefined,
      };
      return;
    }
    if (needed !== undefined && !columns.some(({ name }) => name === needed))
      throw new UserError(
        `${file} has no column "${needed}". Its columns are: ${columns.map(({ name, type }) => `${name} (${type})`).join(", ")}. Rename the one that holds the text.`,
        2,
      );
    // One JSON object a row, so that every record is treated as a JSONL line is from here on. Columns with bytes stand beside it until these are text.
    const quote = (name: string): string => `"${name.replaceAll('"', '""')}"`;
    const ofBytes = columns.filter(({ texts }) => texts);
    const keys = columns
      .filter(({ texts }) => !texts)
      .map(({ name }) => `'${name.replaceAll("'", "''")}', ${quote(name)}`);
    const values = [`json_object(${keys.join(", ")})`, ...ofBytes.map(({ name }) => `to_json(${quote(name)})`)];
    const fields = columns.map(({ name }) => quote(name)).join(", ");
    const query = `SELECT ${values.map((value) => `${value}::VARCHAR`).join(", ")} FROM (SELECT ${fields} FROM read_parquet(${quoted}) OFFSET ${from.records})`;
    let result: Awaited<ReturnType<typeof connection.stream>> | undefined;
    const fractions = columns.some(({ type }) => /FLOAT|DOUBLE/.test(type));
    const json = (value: unknown): string => (fractions ? withoutNaN(String(value)) : String(value));
    let line = from.records;
    for (;;) {
      let rows: unknown[][];
      try {
        result ??= await connection.stream(query);
        rows = (await result.fetchChunk())?.getRows() ?? [];
      } catch (error) {
        const reason = (error as Error).message.split("\n")[0];
        yield { record: unusable(file, line + 1, `the Parquet file cannot be read on: ${reason}`), next: undefined };
        return;
      }
      if (rows.length === 0) break;
      for (const [whole, ...others] of rows) {
        line++;
        let row = json(whole);
        let noText = false;
        for (const [i, { name, texts }] of ofBytes.entries()) {
          const value = others[i] === null ? null : texts!(JSON.parse(json(others[i])));
          noText ||= name === needed && value !== null && typeof value !== "string";
          row = `${row.slice(0, -1)}${row === "{}" ? "" : ","}${JSON.stringify(name)}:${JSON.stringify(value)}}`;
        }
        const bytes = Buffer.from(row);
        const record: RawRecord = noText
          ? unusable(file, line, `what stands in the column "${needed}" is not UTF-8`)
          : bytes.length > limits.maxRecordBytes
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

/** Makes the bytes in a value of JSON texts, at whatever depth. */
type Texts = (value: unknown) => unknown;

/** Undefined for a type that has no bytes in it. */
function textsIn(type: DuckDBType): Texts | undefined {
  const inside = (texts: Texts | undefined, each: (texts: Texts, value: object) => unknown): Texts | undefined =>
    texts && ((value) => (value === null ? null : each(texts, value as object)));
  if ("entryTypes" in type && "entryNames" in type) {
    const { entryNames } = type;
    const fields = new Map(type.entryTypes.map((of, i) => [entryNames[i], textsIn(of)]));
    const one = [...fields.values()].some(Boolean) ? (value: unknown) => value : undefined;
    return inside(one, (_, value) =>
      Object.fromEntries(Object.entries(value).map(([key, field]) => [key, (fields.get(key) ?? one!)(field)])),
    );
  }
  if ("keyType" in type) {
    const [key, value] = [textsIn(type.keyType), textsIn(type.valueType)];
    const named = (name: string): string => {
      const text = key?.(name);
      return typeof text === "string" ? text : name;
    };
    return inside(key ?? value, (_, map) =>
      Object.fromEntries(Object.entries(map).map(([name, of]) => [named(name), value ? value(of) : of])),
    );
  }
  if ("valueType" in type) return inside(textsIn(type.valueType), (of, list) => (list as unknown[]).map(of));
  return `${type}` === "BLOB" ? textOfBytes : undefined;
}

/** DuckDB writes \xE5 for a byte that is no printable ASCII, and for a backslash. Bytes that are no text are told by their number: no reader takes that for one. */
function textOfBytes(value: unknown): unknown {
  if (value === null) return null;
  const bytes = Buffer.from(
    (value as string).replace(/\\x(..)/g, (_, hex) => String.fromCharCode(Number.parseInt(hex, 16))),
    "latin1",
  );
  return isUtf8(bytes) ? bytes.toString() : { bytes: bytes.length };
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
