// Ends with status 1 so many milliseconds after its start, and leaves a byte for each start: crash.js FILE MS

'use strict';

const fs = require('node:fs');

const [file, ms] = process.argv.slice(2);
fs.appendFileSync(file, '.');
setTimeout(() => process.exit(1), Number(ms));
