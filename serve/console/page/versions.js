/**
 * Versions of models: how they are told apart, and what is known of the chosen one.
 */

/** Key of a model's version, by what a batch or request says of it, or the server or the header. */
export function modelKey({ model, name, version }) {
  return `${model ?? name}\n${version}`;
}

/** Return what the server tells of the version that is chosen in the header; null: it has told of none. */
export function servedModel({ server, model }) {
  return (model && server?.models.find((one) => modelKey(one) === modelKey(model))) ?? null;
}

/** Return the path of a model's version below `prefix`, such as "/v1"; names may hold anything. */
export function versionPath(prefix, { name, version }) {
  return `${prefix}/models/${encodeURIComponent(name)}/versions/${encodeURIComponent(version)}`;
}
