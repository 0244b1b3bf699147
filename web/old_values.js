/**
 * Widget values of workflows that an older version saved. A file keeps values by position, so an input that went or came shifts those behind it.
 * Each entry takes a node's saved values and returns them as the node has its widgets now. It tells old from new by the values themselves.
 */
export const MENDERS = {
  /** `miniature_world`, a boolean between `blip2` and `theme`, is gone. */
  KindredEvaluate: (values) => (typeof values[6] === "boolean" ? values.filter((_, index) => index !== 6) : values),
};
