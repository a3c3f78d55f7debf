import { beforeAll, describe, expect, it } from "vitest";
import type { Backend } from "../backend/backend.ts";
import { nodeOrt } from "../backend/ort/node.ts";
import { reference } from "../backend/reference/reference.ts";
import { DtypeError, MissingError, OptionError, ShapeError, StateError } from "../errors.ts";
import { adafactor, adamW, lion, muon, type Optimizer, sgd } from "../optim/index.ts";
import { Rng } from "../tensor/rng.ts";
import { sizeOf } from "../tensor/shape.ts";
import { Tensor } from "../tensor/tensor.ts";
import { Updater, type UpdaterOptions } from "./updater.ts";

const f = Math.fround;
const shapes = { matrix: [3, 5], bias: [7], scalar: [], none: [0, 4] } as const;
const judge = reference();
let engine: Backend;

beforeAll(async () => {
  engine = await nodeOrt({ threads: 1 });
});

function random(seed: number, of: Readonly<Record<string, readonly number[]>> = shapes) {
  const rng = new Rng(seed);
  return Object.fromEntries(
    Object.entries(of).map(([name, shape]) => [
      name,
      Tensor.from(rng.normals(sizeOf(shape)), shape),
    ]),
  );
}

function make(
  optimizer: Optimizer,
  options: UpdaterOptions = {},
  backend: Backend = judge,
  params: Readonly<Record<string, Tensor>> = random(1),
): Updater {
  return new Updater(params, [{ paths: Object.keys(params), optimizer }], backend, options);
}

function give(updater: Updater, gradients: Readonly<Record<string, Tensor>>): void {
  for (const [name, tensor] of Object.entries(gradients)) {
    updater.gradients[name]!.data.set(tensor.numbers());
  }
}

/** Steps on random gradients. */
async function train(updater: Updater, seed = 2, steps = 5): Promise<void> {
  for (let i = 0; i < steps; i++) {
    give(updater, random(seed + i));
    await updater.step(0.05);
  }
}

const numbers = (tensors: Readonly<Record<string, Tensor>>): number[] =>
  Object.values(tensors).flatMap((tensor) => Array.from(tensor.numbers()));

function farthest(a: readonly number[], b: readonly number[]): number {
  expect(a.length).toBe(b.length);
  return Math.max(...a.map((x, i) => Math.abs(x - b[i]!) / Math.max(1, Math.abs(b[i]!))));
}

const halfMask = (shape: readonly number[]): Tensor =>
  Tensor.from(
    Array.from({ length: sizeOf(shape) }, (_, i) => i % 2),
    shape,
  );

describe("one step", () => {
  it("of SGD is θ − η g", async () => {
    const updater = make(sgd(), {}, judge, { w: Tensor.from([1, -2, 0.5]) });
    give(updater, { w: Tensor.from([0.5, 0.25, -1]) });
    // 1 - 0.5·0.5, -2 - 0.5·0.25, 0.5 + 0.5·1; the norm is √(0.25 + 0.0625 + 1)
    expect(await updater.step(0.5)).toEqual({ gradientNorm: Math.sqrt(1.3125), isApplied: true });
    expect([...updater.params["w"]!.data]).toEqual([0.75, -2.125, 1]);
    expect(updater.stepCount).toBe(1);
  });

  it("does not change the tensors that were given", async () => {
    const given = { w: Tensor.from([1, 2]) };
    const updater = make(sgd(), {}, judge, given);
    give(updater, { w: Tensor.from([1, 1]) });
    await updater.step(0.5);
    expect([...given.w.data]).toEqual([1, 2]);
  });

  it("takes parameters stored in half precision", () => {
    const half = Tensor.from([0.5, -0.25], [2], "float16");
    expect([...make(sgd(), {}, judge, { half }).params["half"]!.data]).toEqual([0.5, -0.25]);
  });

  it("scales the learning rate of a group", async () => {
    const params = { a: Tensor.from([1]), b: Tensor.from([1]), c: Tensor.from([1]) };
    const optimizer = sgd();
    const updater = new Updater(
      params,
      [
        { paths: ["a"], optimizer },
        { paths: ["b"], optimizer, learningRateScale: 0.5 },
        { paths: ["c"], optimizer, learningRateScale: 0 },
      ],
      judge,
    );
    give(updater, { a: Tensor.from([1]), b: Tensor.from([1]), c: Tensor.from([1]) });
    await updater.step(0.5);
    expect(numbers(updater.params)).toEqual([0.5, 0.75, 1]);
  });
});

describe("the SIMD pass and the graph agree", () => {
  const optimizers = {
    adamw: adamW({ weightDecay: 0.1 }),
    sgd: sgd({ momentum: 0.9, nesterov: true, weightDecay: 0.01 }),
    "sgd with dampening": sgd({ momentum: 0.9, dampening: 0.3 }),
    lion: lion({ weightDecay: 0.1 }),
  };
  it.each(Object.keys(optimizers) as (keyof typeof optimizers)[])("%s", async (name) => {
    const optimizer = optimizers[name];
    const options = { clipNorm: 1, ema: 0.9, masks: { matrix: halfMask([3, 5]) } };
    const pass = make(optimizer, options, judge);
    const onEngine = make({ ...optimizer, elementwise: false }, options, engine);
    const onJudge = make({ ...optimizer, elementwise: false }, options, judge);
    for (const updater of [pass, onEngine, onJudge]) await train(updater);
    const all = (updater: Updater): number[] => [
      ...numbers(updater.params),
      ...numbers(updater.state().tensors),
    ];
    // The engine may join a product and a sum: a last bit, now and then.
    expect(farthest(all(pass), all(onEngine))).toBeLessThanOrEqual(2 ** -23);
    expect(farthest(all(pass), all(onJudge))).toBeLessThanOrEqual(5 * 2 ** -23);
    await onEngine.release();
  });
});

describe("two groups with different optimisers", () => {
  it("update as each would alone", async () => {
    const params = random(1, { matrix: [3, 5], bias: [7] });
    const updater = new Updater(
      params,
      [
        { paths: ["bias"], optimizer: adamW() },
        { paths: ["matrix"], optimizer: muon() },
      ],
      engine,
    );
    const alone = [
      make(adamW(), {}, engine, { bias: params["bias"]! }),
      make(muon(), {}, engine, { matrix: params["matrix"]! }),
    ];
    for (let i = 0; i < 3; i++) {
      const gradients = random(10 + i, { matrix: [3, 5], bias: [7] });
      give(updater, gradients);
      give(alone[0]!, { bias: gradients["bias"]! });
      give(alone[1]!, { matrix: gradients["matrix"]! });
      for (const each of [updater, ...alone]) await each.step(0.02);
    }
    expect(updater.params["bias"]!.data).toEqual(alone[0]!.params["bias"]!.data);
    expect(updater.params["matrix"]!.data).toEqual(alone[1]!.params["matrix"]!.data);
    expect(Object.keys(updater.state().tensors)).toEqual([
      "matrix.momentum_buffer",
      "bias.exp_avg",
      "bias.exp_avg_sq",
    ]);
    for (const each of [updater, ...alone]) await each.release();
  });

  it("keep a graph for each shape, and state of other shapes than the parameter", async () => {
    const params = random(1, { a: [3, 4], b: [4, 3], c: [5] });
    const updater = make(adafactor(), { ema: 0.5 }, engine, params);
    give(updater, random(3, { a: [3, 4], b: [4, 3], c: [5] }));
    await updater.step(0.1);
    const shapesOf = Object.entries(updater.state().tensors).map(([k, t]) => [k, t.shape]);
    expect(Object.fromEntries(shapesOf)).toEqual({
      "a.row_var": [3, 1],
      "a.col_var": [1, 4],
      "a.ema": [3, 4],
      "b.row_var": [4, 1],
      "b.col_var": [1, 3],
      "b.ema": [4, 3],
      "c.variance": [5],
      "c.ema": [5],
    });
    await updater.release();
  });
});

describe("gradients of several parts", () => {
  it.each([1, 2, 3])("%i of them, added up, count as one batch", async (parts) => {
    const whole = make(adamW(), { clipNorm: 1 });
    const leavesLast = make(adamW(), { clipNorm: 1, accumulates: true });
    const addsAll = make(adamW(), { clipNorm: 1, accumulates: true });
    for (let step = 0; step < 3; step++) {
      // Halves and quarters add without rounding, whatever the order.
      const pieces = Array.from({ length: parts }, (_, i) => random(20 + 10 * step + i)).map(
        (piece) =>
          Object.fromEntries(
            Object.entries(piece).map(([name, t]) => [
              name,
              Tensor.from(
                Array.from(t.data as Float32Array, (x) => Math.round(4 * x) / 4),
                t.shape,
              ),
            ]),
          ),
      );
      const total = Object.fromEntries(
        Object.entries(pieces[0]!).map(([name, t]) => [
          name,
          Tensor.from(
            Array.from(t.data as Float32Array, (_, i) =>
              pieces.reduce((sum, piece) => sum + (piece[name]!.data[i] as number), 0),
            ),
            t.shape,
          ),
        ]),
      );
      give(whole, total);
      pieces.forEach((piece, i) => {
        give(leavesLast, piece);
        if (i < parts - 1) leavesLast.accumulate();
        give(addsAll, piece);
        addsAll.accumulate();
      });
      const infos = [];
      for (const updater of [whole, leavesLast, addsAll]) infos.push(await updater.step(0.05));
      expect(infos[1]).toEqual(infos[0]);
      expect(infos[2]).toEqual(infos[0]);
    }
    expect(numbers(leavesLast.params)).toEqual(numbers(whole.params));
    expect(numbers(addsAll.params)).toEqual(numbers(whole.params));
  });

  it("need room", () => {
    expect(() => make(sgd()).accumulate()).toThrow(
      new StateError("updater: no room to accumulate — set the option accumulates."),
    );
  });

  it("do not outlive a step that is not applied", async () => {
    const updater = make(sgd(), { accumulates: true }, judge, { w: Tensor.from([1]) });
    give(updater, { w: Tensor.from([Number.NaN]) });
    updater.accumulate();
    expect((await updater.step(1)).isApplied).toBe(false);
    give(updater, { w: Tensor.from([0.25]) });
    expect((await updater.step(1)).isApplied).toBe(true);
    expect([...updater.params["w"]!.data]).toEqual([0.75]);
  });
});

describe("clipping", () => {
  // ‖(3, 4)‖ = 5 over two parameters
  const twoParams = { a: Tensor.from([0]), b: Tensor.from([0]) };
  const gradients = { a: Tensor.from([3]), b: Tensor.from([4]) };

  it("scales all gradients by limit / (norm + 1e-6), as torch does", async () => {
    const updater = make(sgd(), { clipNorm: 2 }, judge, twoParams);
    give(updater, gradients);
    expect((await updater.step(1)).gradientNorm).toBe(5);
    const factor = f(2 / (5 + 1e-6));
    expect(numbers(updater.params)).toEqual([-f(3 * factor), -f(4 * factor)]);
  });

  it.each([5.1, 100])("leaves gradients below the limit of %d as they are", async (clipNorm) => {
    const updater = make(sgd(), { clipNorm }, judge, twoParams);
    give(updater, gradients);
    await updater.step(1);
    expect(numbers(updater.params)).toEqual([-3, -4]);
  });

  it("does not write to the gradients", async () => {
    const updater = make(sgd(), { clipNorm: 1 }, judge, twoParams);
    give(updater, gradients);
    await updater.step(1);
    expect(numbers(updater.gradients)).toEqual([3, 4]);
  });
});

describe("masks", () => {
  it.each(["pass", "graph"])("keep zeros exactly zero after updates (%s)", async (path) => {
    const optimizer = { ...adamW({ weightDecay: 0.1 }), elementwise: path === "pass" };
    const updater = make(optimizer, { masks: { matrix: halfMask([3, 5]) } });
    await train(updater);
    updater.params["matrix"]!.data.forEach((x, i) => {
      if (i % 2 === 0) expect(x === 0).toBe(true);
      else expect(x).not.toBe(0);
    });
    expect(updater.params["bias"]!.data.every((x) => x !== 0)).toBe(true);
  });
});

describe("the running mean", () => {
  it("is ema·decay + parameter·(1 − decay), from the first parameters on", async () => {
    const updater = make(sgd(), { ema: 0.75 }, judge, { w: Tensor.from([1]) });
    expect(numbers(updater.ema!)).toEqual([1]);
    for (const expected of [0.875, 0.65625]) {
      give(updater, { w: Tensor.from([0.5]) });
      await updater.step(1);
      // parameters 0.5, 0: 1·0.75 + 0.5·0.25 = 0.875, then 0.875·0.75 + 0
      expect(numbers(updater.ema!)).toEqual([expected]);
    }
  });

  it("is absent unless asked for", () => {
    expect(make(sgd()).ema).toBeUndefined();
  });
});

describe("a gradient that is not finite", () => {
  it.each([Number.NaN, Infinity, -Infinity])("%d is not applied", async (bad) => {
    const updater = make(adamW(), { ema: 0.9 });
    await train(updater, 2, 2);
    const before = [numbers(updater.params), numbers(updater.state().tensors)];
    give(updater, random(5));
    updater.gradients["bias"]!.data[6] = bad;
    const info = await updater.step(0.05);
    expect(info.isApplied).toBe(false);
    expect(Number.isFinite(info.gradientNorm)).toBe(false);
    expect([numbers(updater.params), numbers(updater.state().tensors)]).toEqual(before);
    expect(updater.stepCount).toBe(2);
  });
});

describe("state", () => {
  const copyOf = (tensors: Readonly<Record<string, Tensor>>): Record<string, Tensor> =>
    Object.fromEntries(Object.entries(tensors).map(([name, tensor]) => [name, tensor.clone()]));

  it.each([
    ["adamw", adamW(), judge],
    ["sgd with momentum", sgd({ momentum: 0.9, dampening: 0.5 }), judge],
    ["adafactor", adafactor(), judge],
  ] as const)(
    "loaded elsewhere gives the same bits afterwards: %s",
    async (_, optimizer, backend) => {
      const options = { ema: 0.9, clipNorm: 1 };
      const first = make(optimizer, options, backend);
      await train(first, 2, 3);
      const { step, tensors } = first.state();
      const saved = { params: copyOf(first.params), step, tensors: copyOf(tensors) };
      await train(first, 30, 3);
      const second = make(optimizer, options, backend, random(99));
      second.load(saved.params, saved);
      expect(second.stepCount).toBe(3);
      await train(second, 30, 3);
      expect(numbers(second.params)).toEqual(numbers(first.params));
      expect(numbers(second.state().tensors)).toEqual(numbers(first.state().tensors));
      expect(second.stepCount).toBe(6);
    },
  );

  it("drops what was accumulated before it was loaded", async () => {
    const updater = make(sgd(), { accumulates: true }, judge, { w: Tensor.from([1]) });
    give(updater, { w: Tensor.from([8]) });
    updater.accumulate();
    updater.load({ w: Tensor.from([2]) }, { step: 0, tensors: {} });
    give(updater, { w: Tensor.from([1]) });
    await updater.step(1);
    expect(numbers(updater.params)).toEqual([1]);
  });

  describe("that does not fit names the tensor and changes nothing", () => {
    const setup = () => {
      const updater = make(adamW());
      const { step, tensors } = updater.state();
      return { updater, params: copyOf(random(7)), step, tensors: copyOf(tensors) };
    };

    it("a parameter or a slot is missing", () => {
      const { updater, params, ...state } = setup();
      const { bias: _, ...fewer } = params;
      expect(() => updater.load(fewer, state)).toThrow(
        new MissingError('updater: the checkpoint lacks "bias".'),
      );
      delete state.tensors["matrix.exp_avg_sq"];
      expect(() => updater.load(params, state)).toThrow('lacks "matrix.exp_avg_sq"');
      expect(numbers(updater.params)).toEqual(numbers(random(1)));
    });

    it("a shape differs", () => {
      const { updater, params, ...state } = setup();
      state.tensors["bias.exp_avg"] = Tensor.zeros([8], "float32");
      expect(() => updater.load(params, state)).toThrow(
        new ShapeError('updater: "bias.exp_avg" must have shape (7,), got (8,).'),
      );
      expect(numbers(updater.params)).toEqual(numbers(random(1)));
    });

    it("another optimiser wrote it", () => {
      const { params, ...state } = setup();
      expect(() => make(lion()).load(params, state)).toThrow(
        new StateError(
          'updater: the checkpoint has "matrix.exp_avg_sq", which is not kept here — use the optimizer and options that wrote it.',
        ),
      );
    });

    it("the step is no count", () => {
      const { updater, params, tensors } = setup();
      expect(() => updater.load(params, { step: -1, tensors })).toThrow(
        "updater: step must be a whole number from 0, got -1.",
      );
    });
  });
});

describe("release", () => {
  it("frees the graphs; a later step loads them again", async () => {
    let loaded = 0;
    let released = 0;
    const counting: Backend = {
      name: "counting",
      load: async (program, options) => {
        const inner = await judge.load(program, options);
        loaded++;
        return {
          inputs: inner.inputs,
          outputs: inner.outputs,
          run: (inputs, into) => inner.run(inputs, into),
          release: async () => {
            released++;
            await inner.release();
          },
        };
      },
    };
    const params = random(1, { a: [2, 2], b: [2, 2], c: [2, 3] });
    const updater = make(muon(), {}, counting, params);
    const step = async (): Promise<void> => {
      give(updater, random(4, { a: [2, 2], b: [2, 2], c: [2, 3] }));
      await updater.step(0.1);
    };
    await step();
    await step();
    // one graph for each shape
    expect([loaded, released]).toEqual([2, 0]);
    await updater.release();
    expect([loaded, released]).toEqual([2, 2]);
    await step();
    expect(loaded).toBe(4);
    await updater.release();
    await updater.release();
    expect(released).toBe(4);
  });
});

describe("errors by sentence", () => {
  const w = Tensor.from([1, 2]);
  const group = { paths: ["w"], optimizer: sgd() };
  const error = (
    params: Readonly<Record<string, Tensor>>,
    groups: readonly (typeof group & { learningRateScale?: number })[],
    options?: UpdaterOptions,
  ): unknown => {
    try {
      new Updater(params, groups, judge, options);
    } catch (thrown) {
      return thrown;
    }
    return undefined;
  };

  it("a path in no group, in two, or unknown", () => {
    expect(error({ w, v: w }, [group])).toEqual(new OptionError('updater: "v" is in no group.'));
    expect(error({ w }, [group, group])).toEqual(new OptionError('updater: "w" is in two groups.'));
    expect(error({ v: w }, [group])).toEqual(new OptionError('updater: no parameter "w".'));
    expect(error({ w }, [{ ...group, paths: ["toString"] }])).toEqual(
      new OptionError('updater: no parameter "toString".'),
    );
    expect(() => make(sgd()).entry("v")).toThrow(new StateError('updater: no parameter "v".'));
  });

  it("a parameter that an optimiser does not take", () => {
    expect(error({ w }, [{ ...group, optimizer: muon() }])).toEqual(
      new OptionError(
        'updater: "w" has shape (2,), but muon takes matrices only — put it into another group.',
      ),
    );
    expect(error({ w: w.to("int32") }, [group])).toEqual(
      new DtypeError('updater: "w" must hold floats to be trained, got int32.'),
    );
  });

  it("masks that do not fit", () => {
    expect(error({ w }, [group], { masks: { w: Tensor.from([1]) } })).toEqual(
      new ShapeError('updater: mask of "w" must have shape (2,), got (1,).'),
    );
    expect(error({ w }, [group], { masks: { v: w } })).toEqual(
      new OptionError('updater: a mask is for "v", which is no parameter.'),
    );
  });

  it("numbers outside their range", async () => {
    expect(error({ w }, [group], { clipNorm: 0 })).toEqual(
      new OptionError("updater: clipNorm must be above 0, got 0."),
    );
    expect(error({ w }, [group], { ema: 1 })).toEqual(
      new OptionError("updater: ema must be in [0, 1), got 1."),
    );
    expect(error({ w }, [{ ...group, learningRateScale: -1 }])).toEqual(
      new OptionError("updater: learningRateScale must be a number from 0, got -1."),
    );
    await expect(make(sgd()).step(Number.NaN)).rejects.toThrow(
      new OptionError("updater: learning rate must be a number from 0, got NaN."),
    );
  });
});
