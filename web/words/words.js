/** What the page says, in the language of the front end's setting; English where that language lacks a message. */
import { language } from "../host.js";
import en from "./en.js";
import fr from "./fr.js";
import ja from "./ja.js";
import zh from "./zh.js";

const TABLES = { en, fr, ja, zh };

/** The message `key` with its `{places}` filled in. An unknown key raises. */
export function say(key, places = {}) {
  const message = TABLES[language()]?.[key] ?? en[key];
  if (message === undefined) throw new Error(`Kindred: there is no message "${key}".`);
  return message.replace(/\{(\w+)\}/g, (_, place) => places[place]);
}
