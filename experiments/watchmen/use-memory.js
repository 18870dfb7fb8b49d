// Uses more memory than its limit, once: use-memory.js FILE MIB. It makes the file when it has done so; when the file is
// there already it stays small.

'use strict';

const fs = require('node:fs');

const [file, mib] = process.argv.slice(2);
let kept;
if (!fs.existsSync(file)) {
  // A process that was just started may not be watched yet.
  setTimeout(() => {
    kept = Buffer.alloc(Number(mib) * 1024 * 1024, 1);
    fs.writeFileSync(file, '');
  }, 1000);
}
setInterval(() => kept?.length, 1000);
