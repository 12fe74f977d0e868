/**
 * Versions of models: how they are told apart, and what is known of the chosen one.
 */

/** Key of a model's version, by what a batch or request says of it, or the server or the header; null: of none. */
export function modelKey(of) {
  return of && `${of.model ?? of.name}\n${of.version}`;
}

/** Return what the server tells of the version that is chosen in the header; null: it has told of none. */
export function servedModel({ server, model }) {
  return server?.models.find((one) => modelKey(one) === modelKey(model)) ?? null;
}

/** Return the path of a model's version below `prefix`, such as "/v1"; names may hold anything. */
export function versionPath(prefix, { name, version }) {
  return `${prefix}/models/${encodeURIComponent(name)}/versions/${encodeURIComponent(version)}`;
}
