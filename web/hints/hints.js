/** Which inputs get a picture of what low and high do, and the picture's place: right below the number. */
import { addElement, after, fixHeight } from "../host.js";
import { alphaPicture } from "./alpha.js";
import { omegaPicture } from "./omega.js";

const HEIGHT = 38;
const GUIDED = ["KindredPersonalizationGuidance", "KindredGuider", "KindredKSampler", "KindredKSamplerAdvanced"];
const ADJUSTED = ["KindredConditioningSLERP", "KindredTokenSLERP", "KindredTextEncode"];

export function addHints(node) {
  if (GUIDED.includes(node.comfyClass)) addHint(node, "omega", omegaPicture());
  if (ADJUSTED.includes(node.comfyClass)) addHint(node, "alpha", alphaPicture());
}

/** picture: {element, show(value or null)}; null where a link decides. */
function addHint(node, name, picture) {
  const widget = node.widgets?.find((candidate) => candidate.name === name);
  if (!widget) return;
  const hint = addElement(node, `${name}_hint`, picture.element, node.widgets.indexOf(widget) + 1, { margin: 6 });
  fixHeight(hint, () => HEIGHT);
  const show = () => {
    const linked = node.inputs?.find((input) => input.widget?.name === name)?.link != null;
    picture.show(linked ? null : Number(widget.value));
  };
  after(widget, "callback", show);
  after(node, "onConfigure", show);
  after(node, "onConnectionsChange", show);
  show();
}
