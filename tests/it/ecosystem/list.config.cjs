'use strict';
// A list that is computed, from another file and from values that all share.
const path = require('path');
const { names, shared } = require('./shared');

console.log('this line is printed while the file is evaluated: {"apps": []}');

module.exports = names.map((name, index) => ({
  ...shared,
  name,
  exec: path.join(__dirname, 'services', `${name}.js`),
  out: `./logs/${name}.out.log`,
  err: `./logs/${name}.err.log`,
  env: { PORT: String(4000 + index) },
}));
