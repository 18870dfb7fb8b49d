// Node's own cluster, with as much of section 1 of the contract as the experiments need, to be measured beside ours.
//
// Who accepts: with `--policy rr` the primary, which passes each connection to the next worker that has acknowledged
// its last one; with `--policy none` the workers, from the listening socket that the primary has sent them. Who serves:
// the worker. See https://nodejs.org/api/cluster.html.
//
//     node experiments/node-cluster.js --workers 4 --policy rr --listen 127.0.0.1:8080

'use strict';

const cluster = require('node:cluster');
const http = require('node:http');
const { parseArgs } = require('node:util');

const { values: flags } = parseArgs({
  options: {
    workers: { type: 'string', default: '2' },
    policy: { type: 'string', default: 'rr' },
    listen: { type: 'string', default: '127.0.0.1:8080' },
    body: { type: 'string', default: '64' },
  },
});

function account() {
  const usage = process.resourceUsage();
  return {
    pid: process.pid,
    cpu_user_us: usage.userCPUTime,
    cpu_system_us: usage.systemCPUTime,
    voluntary_switches: usage.voluntaryContextSwitches,
    involuntary_switches: usage.involuntaryContextSwitches,
    max_rss_kib: usage.maxRSS,
  };
}

function primary() {
  const count = Number(flags.workers);
  const start = process.hrtime.bigint();
  const reports = [];
  let listening = 0;
  let exited = 0;
  let address;
  cluster.schedulingPolicy = flags.policy === 'rr' ? cluster.SCHED_RR : cluster.SCHED_NONE;
  cluster.on('listening', (_, at) => {
    address = `${at.address}:${at.port}`;
    listening += 1;
    if (listening === count) {
      console.log(`ready ${address}`);
    }
  });
  cluster.on('message', (worker, report) => {
    reports.push(report);
    worker.process.kill('SIGKILL');
  });
  cluster.on('exit', () => {
    exited += 1;
    if (exited === count) {
      reports.sort((a, b) => a.id - b.id);
      const uptime_s = Number(process.hrtime.bigint() - start) / 1e9;
      const document = { model: 'node-cluster', listen: address, uptime_s, workers: reports, master: account() };
      process.stdout.write(JSON.stringify(document) + '\n', () => process.exit(0));
    }
  });
  const stop = () => Object.values(cluster.workers).forEach((worker) => worker.send('stop'));
  process.on('SIGTERM', stop);
  process.on('SIGINT', stop);
  for (let id = 0; id < count; id += 1) {
    cluster.fork({ WORKER_ID: id });
  }
}

function worker() {
  const id = Number(process.env.WORKER_ID);
  const body = Buffer.from(`handled by worker ${id}, pid ${process.pid}\n`.padEnd(Number(flags.body), '.'));
  const headers = { 'Content-Type': 'text/plain', 'Content-Length': body.length, 'X-Worker': id };
  const books = { accepted: 0, requests: 0, active: 0 };
  const server = http.createServer((request, response) => {
    books.requests += 1;
    response.writeHead(200, headers);
    response.end(body);
  });
  server.on('connection', (socket) => {
    books.accepted += 1;
    books.active += 1;
    socket.on('close', () => { books.active -= 1; });
  });
  // Node counts none of these; the contract asks for the fields, and no table of Node shows them.
  const unknown = { wakeups: 0, empty_wakeups: 0, client_errors: 0 };
  process.on('message', () => process.send({ id, ...books, ...unknown, ...account() }));
  // The signal of a terminal goes to the whole group; the primary decides.
  process.on('SIGINT', () => {});
  const [host, port] = flags.listen.split(':');
  server.listen(Number(port), host);
}

(cluster.isPrimary ? primary : worker)();
