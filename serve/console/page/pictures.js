/**
 * Files that the visitor chose, dropped or pasted.
 */

import { count } from "./dom.js";

const PICTURE_NAME = /\.(jpe?g|jpe|jfif|png|webp|gif|bmp|tiff?)$/i;

/** Return which of a folder's files look like pictures, in the order of their names; hidden ones never do. */
export function picturesOf(files) {
  const pictures = files
    .map((file) => ({ file, name: nameOf(file) }))
    .filter(({ file, name }) => !/(^|\/)\./.test(name) && (file.type.startsWith("image/") || PICTURE_NAME.test(name)))
    .sort((a, b) => (a.name < b.name ? -1 : 1))
    .map(({ file }) => file);
  return { files: pictures, passedOver: files.length - pictures.length };
}

/** Return what a file is called, below the folder that was given, if it was one. */
export function nameOf(file) {
  return file.webkitRelativePath || file.pathInDrop || file.name || "pasted picture";
}

/** Add all files below a dropped entry to `found`; what can't be read is passed over. */
export async function filesBelow(entry, found, say) {
  const promised = (call) => new Promise((resolve, reject) => call(resolve, reject));
  try {
    if (entry.isFile) {
      const file = await promised((resolve, reject) => entry.file(resolve, reject));
      file.pathInDrop = entry.fullPath.replace(/^\//, "");
      found.push(file);
      if (found.length % 100 === 0) say(`Reading the folder: ${count(found.length)} files`);
      return;
    }
    const reader = entry.createReader();
    for (;;) {
      // A reader gives a part of a folder with each call, and an empty list in the end.
      const part = await promised((resolve, reject) => reader.readEntries(resolve, reject));
      if (!part.length) return;
      for (const below of part) await filesBelow(below, found, say);
    }
  } catch (error) {
    say(`${entry.fullPath} can't be read: ${error.message}`);
  }
}

export async function isReadable(file) {
  try {
    await file.slice(0, 1).arrayBuffer();
    return true;
  } catch {
    return false;
  }
}
