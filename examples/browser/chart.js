/** The loss of each step as dots, and their running mean as a line. */

const [width, height] = [560, 240];
const edge = { left: 44, right: 14, top: 12, bottom: 34 };
const namespace = "http://www.w3.org/2000/svg";

function element(name, attributes, text) {
  const made = document.createElementNS(namespace, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

/** The smallest of 1, 2 and 5 times a power of ten that is not below. */
function roundStep(least) {
  const power = 10 ** Math.floor(Math.log10(least));
  return [1, 2, 5, 10].map((times) => times * power).find((step) => step >= least * 0.999);
}

export function drawCurve(svg, losses, steps) {
  if (losses.length === 0) {
    const middle = { x: width / 2, y: height / 2, "text-anchor": "middle" };
    svg.replaceChildren(element("text", middle, "The loss of each step will be drawn here."));
    svg.setAttribute("aria-label", "Loss at each step: nothing yet");
    return;
  }
  const highest = Math.max(0.1, ...losses);
  const across = Math.max(1, steps - 1);
  const x = (step) => edge.left + (step / across) * (width - edge.left - edge.right);
  const y = (loss) => height - edge.bottom - (loss / highest) * (height - edge.top - edge.bottom);
  const parts = [];
  const tick = roundStep(highest / 4);
  for (let loss = 0; loss <= highest + 1e-9; loss += tick) {
    const at = y(loss);
    parts.push(
      element("line", { class: "grid", x1: edge.left, x2: width - edge.right, y1: at, y2: at }),
    );
    const label = String(Number(loss.toPrecision(3)));
    parts.push(element("text", { x: edge.left - 8, y: at + 4, "text-anchor": "end" }, label));
  }
  const stride = Math.max(1, roundStep(steps / 5));
  for (let step = stride; step <= steps; step += stride) {
    const attributes = { x: x(step - 1), y: height - 12, "text-anchor": "middle" };
    parts.push(element("text", attributes, String(step)));
  }
  losses.forEach((loss, step) => {
    parts.push(element("circle", { class: "step", cx: x(step), cy: y(loss), r: 2.5 }));
  });
  const window = Math.max(1, Math.round(steps / 15));
  const mean = losses.map((_, step) => {
    const part = losses.slice(Math.max(0, step - window + 1), step + 1);
    return part.reduce((a, b) => a + b, 0) / part.length;
  });
  const points = mean.map((loss, step) => `${x(step).toFixed(1)},${y(loss).toFixed(1)}`);
  parts.push(element("polyline", { class: "mean", points: points.join(" ") }));
  svg.replaceChildren(...parts);
  svg.setAttribute(
    "aria-label",
    `Loss at each step: ${losses[0].toFixed(2)} at the first, ${mean.at(-1).toFixed(2)} after ${losses.length} of ${steps}`,
  );
}
