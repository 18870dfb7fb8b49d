// Evaluates an ecosystem file and writes one line of JSON to a descriptor: { Ok: [value, notes] } or { Err: line }, as
// serde reads a Result.
// Run as `node --eval THIS FILE DESCRIPTOR`; what the file itself prints goes elsewhere.
const { spawnSync } = require('node:child_process');
const { readFileSync, writeSync } = require('node:fs');
const { register } = require('node:module');
const { resolve } = require('node:path');
const { fileURLToPath, pathToFileURL } = require('node:url');

const [, path, descriptor] = process.argv;
const file = resolve(path);
const url = pathToFileURL(file).href;

// JSON.stringify would drop functions without a word, and of a cycle it does not say where it is.
function plain(value, at, above, notes) {
  if (typeof value === 'bigint' || (typeof value === 'number' && !Number.isFinite(value))) return String(value);
  if (value instanceof RegExp) {
    notes.push(`${at} is a regular expression, which only JavaScript has; it is left out, write a glob instead`);
    return undefined;
  }
  if (typeof value === 'function' || typeof value === 'symbol') {
    notes.push(`${at} is a ${typeof value}; it is left out`);
    return undefined;
  }
  if (value === null || typeof value !== 'object') return value;
  if (typeof value.then === 'function') throw new Error(`${at} is a Promise; await it in the file`);
  if (above.includes(value)) throw new Error(`${at} contains itself`);
  const inside = above.concat([value]);
  if (typeof value.toJSON === 'function') return plain(value.toJSON(), at, inside, notes);
  if (Array.isArray(value)) return value.map((item, i) => plain(item, `${at}[${i}]`, inside, notes));
  const copy = Object.create(null);
  for (const key of Object.keys(value)) copy[key] = plain(value[key], at ? `${at}.${key}` : key, inside, notes);
  return copy;
}

// Where in the file, or in one that it loads: from the head of a syntax error, or from the first line of the stack that
// is not Node's. What is wrong in a module's syntax has neither, so Node is asked once more.
function place(error) {
  const stack = String(error?.stack ?? '');
  const head = stack.split('\n', 1)[0];
  const found = /^(\/.+|file:\/\/.+):(\d+)$/.exec(head) ?? /(?:\(|at )(\/.+?|file:\/\/.+?):(\d+):\d+\)?$/m.exec(stack);
  if (found) return `${found[1].startsWith('file:') ? fileURLToPath(found[1]) : found[1]}:${found[2]}`;
  if (!(error instanceof SyntaxError)) return path;
  const check = spawnSync(process.execPath, ['--input-type=module', '--check', '-'], { input: readFileSync(file), encoding: 'utf8' });
  const line = /:(\d+)$/.exec(check.stderr.split('\n', 1)[0]);
  return line ? `${file}:${line[1]}` : path;
}

// `export` in a file that Node takes for CommonJS by its name: read again as a module.
function asModule() {
  const hook = `export async function load(asked, context, next) {
    if (asked !== ${JSON.stringify(`${url}?module`)}) return next(asked, context);
    return { format: 'module', shortCircuit: true, source: ${JSON.stringify(readFileSync(file, 'utf8'))} };
  }`;
  register(`data:text/javascript,${encodeURIComponent(hook)}`, url);
  return import(`${url}?module`);
}

async function evaluate() {
  let module;
  try {
    module = await import(url);
  } catch (error) {
    if (!register || !(error instanceof SyntaxError) || !/'export'|import statement|await is only/.test(error.message)) throw error;
    module = await asModule();
  }
  const value = await ('default' in module ? module.default : module);
  if (typeof value === 'function') throw new Error('it exports a function, and is to export an object');
  const notes = [];
  return [plain(value, '', [], notes) ?? null, notes];
}

function failure(error) {
  const said = error instanceof Error ? `${error.name}: ${error.message.split('\n', 1)[0]}` : `it throws ${JSON.stringify(error)}`;
  return `${place(error)}: ${said}`;
}

evaluate()
  .then((evaluated) => ({ Ok: evaluated }), (error) => ({ Err: failure(error) }))
  .then((result) => {
    writeSync(Number(descriptor), JSON.stringify(result) + '\n');
    process.exit(0);
  });
