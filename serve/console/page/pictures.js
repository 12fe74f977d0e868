/**
 * Files that the visitor chose, dropped or pasted.
 */

import { count } from "./dom.js";

const PICTURE_NAME = /\.(jpe?g|jpe|jfif|png|webp|gif|bmp|tiff?)$/i;

/** Return which of a folder's files look like pictures, in the order of their names; hidden ones never do. */
export function picturesOf(files) {
  const isPicture = (file) => file.type.startsWith("image/") || PICTURE_NAME.test(file.name);
  const pictures = files.filter((file) => isPicture(file) && !/(^|\/)\./.test(nameOf(file)));
  pictures.sort((one, other) => (nameOf(one) < nameOf(other) ? -1 : 1));
  return { files: pictures, passedOver: files.length - pictures.length };
}

/** Return what a file is called, below the folder that was given, if it was one. */
export function nameOf(file) {
  return file.webkitRelativePath || file.pathInDrop || file.name || "pasted picture";
}

/** Add all files below a dropped entry to `found`; what can't be read is passed over. */
export async function filesBelow(entry, found, say) {
  try {
    if (entry.isFile) {
      const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
      file.pathInDrop = entry.fullPath.replace(/^\//, "");
      found.push(file);
      if (found.length % 100 === 0) say(`Reading the folder: ${count(found.length)} files`);
      return;
    }
    const reader = entry.createReader();
    for (;;) {
      // A reader gives a part of a folder with each call, and an empty list in the end.
      const part = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
      if (!part.length) return;
      for (const below of part) await filesBelow(below, found, say);
    }
  } catch (error) {
    say(`${entry.fullPath} can't be read: ${error.message}`);
  }
}

/** Whether a file is still as it was when it was chosen. */
export function isReadable(file) {
  return file.slice(0, 1).arrayBuffer().then(() => true, () => false);
}
