/** The widgets of a node as its definition lists them, which is how a saved file lists their values. `inputs` are the server's: {required, optional}. */
const WIDGETS = ["INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"];
export const CONTROL = "control_after_generate"; // a value of its own behind a seed
export const CONTROLS = ["fixed", "increment", "decrement", "randomize"];

const entries = (inputs) => [...Object.entries(inputs?.required ?? {}), ...Object.entries(inputs?.optional ?? {})];

/** [{name, type, optional, value: the default}] in order; `chosen(name)` is what a choice with inputs of its own stands at. */
export function layout(inputs, chosen = () => undefined, prefix = "") {
  return entries(inputs).flatMap(([key, [type, options = {}]]) => {
    const name = prefix + key, optional = key in (inputs.optional ?? {});
    if (type === "COMFY_DYNAMICCOMBO_V3") {
      const picked = options.options.find((option) => option.key === chosen(name)) ?? options.options[0];
      return [{ name, type, optional, value: picked.key }, ...layout(picked.inputs, chosen, `${name}.`)];
    }
    if (!WIDGETS.includes(options.widgetType ?? type)) return [];
    const widget = { name, type, optional, value: options.default };
    return options.control_after_generate ? [widget, { name: CONTROL, type: "COMBO", value: "fixed" }] : [widget];
  });
}

/** A saved node's values by name. The file names the widgets that have a socket, which all of ours have; null where it names none. */
export function valuesOf(node) {
  const names = (node.inputs ?? []).filter((input) => input.widget).map((input) => input.widget.name ?? input.name);
  return names.length && Array.isArray(node.widgets_values) ? named(names, node.widgets_values) : null;
}

/** Values by position, under the widgets' names in their order; what follows a seed is how it changes. */
export function named(names, saved) {
  const values = [...saved], result = {};
  for (const name of names) {
    if (!values.length) break;
    result[name] = values.shift();
    if (name === "seed" && CONTROLS.includes(values[0])) result[CONTROL] = values.shift();
  }
  return result;
}
