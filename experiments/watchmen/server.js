// A web server that a process manager keeps alive: it says which process answers, and with which TRIAL_* variables.
//
// Who accepts and who balances: in cluster mode the primary (pm's `cluster`, or PM2's daemon). Who serves: this process. It
// says `ready` when it listens, as a manager with `wait_ready` expects, and answers what it has begun when it is asked to end.

'use strict';

const http = require('node:http');

const isTrial = ([name]) => name.startsWith('TRIAL_');
const variables = Object.fromEntries(Object.entries(process.env).filter(isTrial));
const body = `${JSON.stringify({ pid: process.pid, variables })}\n`;
// Of the first instance: each request takes so long.
const slowMs = process.env.NODE_APP_INSTANCE === '0' ? Number(process.env.TRIAL_SLOW_MS ?? 0) : 0;
let isEnding = false;

const server = http.createServer((request, response) => {
  const until = performance.now() + slowMs;
  while (performance.now() < until);
  // The client must not send another request on a connection that will be closed.
  response.writeHead(200, { 'Content-Length': body.length, ...(isEnding && { Connection: 'close' }) });
  response.end(body);
});

function end() {
  isEnding = true;
  server.close(() => process.exit(0));
}

process.on('SIGINT', end);
process.on('SIGTERM', end);
if (!process.env.TRIAL_NEVER_READY) {
  server.listen(Number(process.env.PORT), '127.0.0.1', () => process.send?.('ready'));
} else {
  // It lives, and never listens.
  setInterval(() => {}, 1000);
}
