/** Formats of strings as patterns: what of RFC 3339 and its kin a finite automaton can hold to. */

const month31 = "(0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])";
const month30 = "(0[469]|11)-(0[1-9]|[12][0-9]|30)";
const february = "02-(0[1-9]|1[0-9]|2[0-8])";
const leapYear = "([0-9]{2}(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)";
const date = `([0-9]{4}-(${month31}|${month30}|${february})|${leapYear}-02-29)`;
const offset = "(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])";
/** Without leap seconds, which only some days have. */
const time = `([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,9})?${offset}`;
const byte = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])";
const ipv4 = `${byte}(\\.${byte}){3}`;
const group = "[0-9a-fA-F]{1,4}";
const label = "[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?";
/** A shorter label, so that a host of several has few states. */
const hostname = `${label}(\\.${label})*`;
const hex = "[0-9a-fA-F]";
const digits = "[0-9]{1,9}";

function ipv6(): string {
  const forms = [`(${group}:){7}${group}`];
  for (let before = 0; before <= 7; before++) {
    const head = before === 0 ? ":" : `(${group}:){${before}}`;
    const most = 7 - before;
    const tail = most === 0 ? "" : `(${group}(:${group}){0,${most - 1}})?`;
    forms.push(`${head}:${tail}`);
  }
  return forms.join("|");
}

/** The pattern of each format that is held to. */
export const formatPatterns: ReadonlyMap<string, string> = new Map([
  ["date", `^${date}$`],
  ["time", `^${time}$`],
  ["date-time", `^${date}T${time}$`],
  [
    "duration",
    `^P(${digits}W|(${digits}Y(${digits}M(${digits}D)?)?|${digits}M(${digits}D)?|${digits}D)(T(${digits}H(${digits}M(${digits}S)?)?|${digits}M(${digits}S)?|${digits}S))?|T(${digits}H(${digits}M(${digits}S)?)?|${digits}M(${digits}S)?|${digits}S))$`,
  ],
  ["uuid", `^${hex}{8}-${hex}{4}-${hex}{4}-${hex}{4}-${hex}{12}$`],
  ["ipv4", `^${ipv4}$`],
  ["ipv6", `^(${ipv6()})$`],
  ["hostname", `^${hostname}$`],
  ["email", `^[A-Za-z0-9!#$%&'*+/=?^_\`{|}~-]+(\\.[A-Za-z0-9!#$%&'*+/=?^_\`{|}~-]+)*@${hostname}$`],
  ["uri", "^[A-Za-z][A-Za-z0-9+.-]*:([A-Za-z0-9._~:/?#@!$&'()*+,;=-]|%[0-9a-fA-F]{2})+$"],
]);

/** Formats of numbers and of what every string is: they say nothing more. */
export const emptyFormats: ReadonlySet<string> = new Set([
  "int32",
  "int64",
  "float",
  "double",
  "byte",
  "binary",
  "password",
  "regex",
  "uri-reference",
  "iri",
  "iri-reference",
  "json-pointer",
]);
