/**
 * Weights made ready for generation: every matrix of the layers and the output matrix once more, in a form that is read faster.
 * Reading weights is what a token costs.
 *
 *   int8     each row with a scale of its own (its largest weight / 127): half of bf16. Activations are rounded to int8 in groups of 64
 *            where the processor multiplies bytes; sums are fp32. For tokens of a reply; its prompt meets the weights as they are.
 *   packed   bf16 without loss in about twelve bits (native/bf12.h): the same bytes come out, in three quarters of the reading.
 *
 * Embedding, norms and attention stay as they were.
 */
import { BF12, type Device, INT8, type Ptr, type WeightType } from "../device/device.js";
import type { Llama } from "../nn/llama.js";
import { UserError } from "../run/errors.js";
import type { Parameter } from "../tensor/tensor.js";

export interface ReadyMatrix {
  values: Ptr;
  /** Of each row; 0: none. */
  scale: Ptr;
  type: WeightType;
}

/** How a matrix is stored: where its scales lie behind its values (0: nowhere), and its bytes; undefined: it stays as it is. */
interface Form {
  type: WeightType;
  size(device: Device, W: Parameter): { scales: number; bytes: number } | undefined;
  /** Whether W could be stored so. */
  make(device: Device, W: Parameter, to: ReadyMatrix): boolean;
}

const line = (n: number): number => Math.ceil(n / 64) * 64;

export class ReadyWeights {
  readonly bytes: number;
  private readonly memory: Ptr;
  private closed = false;
  private readonly matrices = new Map<Parameter, ReadyMatrix>();

  /** The weights as they are now; later changes of the model are not seen. `exact`: results are those of the model's own weights. */
  protected constructor(
    private readonly model: Llama,
    form: Form,
    readonly exact: boolean,
  ) {
    model.mustBeOpen();
    const { device, layers } = model;
    const output = model.outputMatrix!;
    const list = [...layers.flatMap((layer) => [layer.qkv, layer.output, layer.gateUp, layer.down]), output];
    const sizes = list.flatMap((W) => {
      const size = form.size(device, W);
      return size ? [{ W, ...size }] : [];
    });
    this.bytes = sizes.reduce((n, { bytes }) => n + bytes, 0);
    this.memory = this.bytes > 0 ? device.alloc(this.bytes) : 0;
    const places = new Map<Parameter, ReadyMatrix>();
    let at = this.memory;
    for (const { W, scales, bytes } of sizes) {
      places.set(W, { values: at, scale: scales > 0 ? at + scales : 0, type: form.type });
      at += bytes;
    }
    const make = (W: Parameter): void => {
      const place = places.get(W);
      if (place && form.make(device, W, place)) this.matrices.set(W, place);
    };
    model.eachLayer(({ qkv, output, gateUp, down }) => {
      for (const W of [qkv, output, gateUp, down]) make(W);
    });
    make(output);
  }

  /** undefined: of this matrix the model's own values serve. */
  of(W: Parameter): ReadyMatrix | undefined {
    return this.matrices.get(W);
  }

  mustBeOpen(): void {
    if (this.closed) throw new UserError("These weights were closed: their memory is gone. Make them anew.");
  }

  close(): void {
    if (this.memory !== 0 && !this.closed) this.model.device.free(this.memory, this.bytes);
    this.closed = true;
  }
}

/** Rows are padded with zeros to a multiple of 64 bytes (native/lyceum.h). */
const INT8_FORM: Form = {
  type: INT8,
  size(_, { shape: [N, K] }) {
    const scales = line(N * line(K));
    return { scales, bytes: scales + line(N * 4) };
  },
  make(device, W, { values, scale }) {
    const [N, K] = W.shape;
    device.quantizeRows(W.ptr, values, scale, N, K, W.dtype);
    return true;
  },
};

export class Int8Weights extends ReadyWeights {
  constructor(model: Llama) {
    const { grid, head, outputMatrix } = model;
    if (grid.tensor.size * grid.pipeline.size > 1 || head !== "lm" || !outputMatrix)
      throw new UserError("int8 is for generation from a language model that one process has all of.");
    super(model, INT8_FORM, false);
  }
}

/** A matrix whose packed form is no shorter than this share of it stays as it is. */
const WORTH = 0.85;
const PACKED_FORM: Form = {
  type: BF12,
  size(device, { shape: [N, K] }) {
    const bytes = device.bf12Bytes(N, K);
    return bytes < WORTH * 2 * N * K ? { scales: 0, bytes } : undefined;
  },
  make: (device, W, { values }) => device.bf12Pack(W.ptr, values, W.shape[0], W.shape[1]) === 0,
};

/** What packing costs (most of it for memory that is new) is saved by about sixty steps. */
const STEPS = 128;

export class PackedWeights extends ReadyWeights {
  private constructor(model: Llama) {
    super(model, PACKED_FORM, true);
  }

  /**
   * For so many replies at a time, of so many tokens; undefined where the model's own weights serve better, where they are offloaded or shared so that nobody has
   * them twice, and where less than twice the memory is free.
   */
  static worthwhile(model: Llama, replies: number, tokens: number): PackedWeights | undefined {
    const { device, grid, precision, config, parameters } = model;
    if (tokens < STEPS || replies > device.bf12Rows() || precision !== "bf16" || !grid.resident) return undefined;
    // Heads, gates and ups are read from their beginnings on, which must be whole strips.
    if (config.headDim % 32 !== 0 || config.intermediateSize % 32 !== 0) return undefined;
    // Packed, a parameter takes little more than 1.5 bytes.
    return 1.6 * parameters.count < process.availableMemory() / 2 ? new PackedWeights(model) : undefined;
  }
}
