// What a program written for PM2 reads of `pm2 jlist`, here from a file: prints how many of these keys are missing
// or have another type, and names them on standard error.

'use strict';

const fs = require('node:fs');

const isCount = (value) => Number.isInteger(value) && value >= 0;
const isText = (value) => typeof value === 'string' && value !== '';
const KEYS = {
  pid: (value) => isCount(value) && value > 0,
  name: isText,
  pm_id: isCount,
  'monit.memory': (value) => isCount(value) && value > 1e6,
  'monit.cpu': (value) => typeof value === 'number',
  'pm2_env.status': (value) => value === 'online',
  'pm2_env.pm_uptime': (value) => Math.abs(Date.now() - value) < 3600e3,
  'pm2_env.restart_time': isCount,
  'pm2_env.unstable_restarts': isCount,
  'pm2_env.exec_mode': (value) => ['fork_mode', 'cluster_mode'].includes(value),
  'pm2_env.instances': isCount,
  'pm2_env.pm_exec_path': (value) => fs.existsSync(value),
  'pm2_env.pm_out_log_path': (value) => fs.existsSync(value),
  'pm2_env.pm_err_log_path': (value) => fs.existsSync(value),
  'pm2_env.namespace': isText,
  'pm2_env.NODE_APP_INSTANCE': isCount,
};

const list = JSON.parse(fs.readFileSync(process.argv[2], 'utf8'));
let wrong = 0;
for (const entry of list) {
  for (const [key, isRight] of Object.entries(KEYS)) {
    const value = key.split('.').reduce((object, part) => object?.[part], entry);
    if (!isRight(value)) {
      wrong += 1;
      console.error(`${entry.name}: ${key} is ${JSON.stringify(value)}`);
    }
  }
}
console.log(JSON.stringify({ keys_read: list.length * Object.keys(KEYS).length, keys_wrong: wrong }));
