// What the Node programs of the experiments share: the flags, the `ready` line and the JSON document that the lab needs
// from a server, and the life of a worker: it starts, serves, announces a fatal error, and ends.
//
// `node PROGRAM` is Node's own primary: it forks the workers, starts a successor for each worker that dies or announces its
// end, and adds up what they count. Under `cluster -- node PROGRAM` the program is a worker from its first line (Node sees
// NODE_UNIQUE_ID), and no code of the primary runs. The worker's code is the same in both, so the two are comparable.
// See https://nodejs.org/api/cluster.html.

'use strict';

const cluster = require('node:cluster');
const fs = require('node:fs');
const http = require('node:http');
const { parseArgs } = require('node:util');

const OPTIONS = {
  workers: { type: 'string', default: '2' },
  policy: { type: 'string', default: 'rr' },
  listen: { type: 'string', default: '127.0.0.1:8080' },
  body: { type: 'string', default: '64' },
  scoreboard: { type: 'string' },
};

// How long a worker that ends waits for its connections.
const LEAVE_WITHIN_MS = 5000;

// How often a worker sends its counts.
const REPORT_EVERY_MS = 100;

// `program({ flags, answer, count })` returns the listener of requests; one that returns nothing never listens.
exports.run = (options, program) => {
  const { values: flags } = parseArgs({ options: { ...OPTIONS, ...options } });
  if (cluster.isPrimary) {
    primary(flags);
  } else {
    worker(flags, program);
  }
};

// `250us`, `10ms`, `1s`, in milliseconds.
exports.milliseconds = (text) => {
  const [, number, unit] = /^([0-9.]+)(us|ms|s)$/.exec(text) ?? [];
  if (unit === undefined) {
    throw new Error(`${text} is no duration; write it like 10ms or 1s`);
  }
  return Number(number) * { us: 0.001, ms: 1, s: 1000 }[unit];
};

function add(sums, numbers) {
  for (const [name, number] of Object.entries(numbers)) {
    if (typeof number === 'number') {
      sums[name] = (sums[name] ?? 0) + number;
    }
  }
}

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

function worker(flags, program) {
  const id = Number(process.env.WORKER_ID);
  const bodyOf = (text) => Buffer.from(`handled by worker ${id}, pid ${process.pid}\n${text}`.padEnd(Number(flags.body), '.'));
  const plain = bodyOf('');
  const books = { accepted: 0, requests: 0, active: 0 };
  let counted = {};
  let isEnding = false;
  const answer = (response, text) => {
    const body = text === undefined ? plain : bodyOf(text);
    const headers = { 'Content-Type': 'text/plain', 'Content-Length': body.length, 'X-Worker': id };
    if (isEnding) {
      // The client must not send another request on a connection that will be closed.
      headers.Connection = 'close';
    }
    response.writeHead(200, headers);
    response.end(body);
  };
  const serve = program({ flags, answer, count: (numbers) => add(counted, numbers) });
  const server = http.createServer((request, response) => {
    books.requests += 1;
    serve(request, response);
  });
  server.on('connection', (socket) => {
    books.accepted += 1;
    books.active += 1;
    socket.on('close', () => { books.active -= 1; });
  });
  // The worker tells the master before it ends, so that a successor starts while this worker still answers.
  process.on('uncaughtException', (error) => {
    console.error(error.message);
    if (!isEnding) {
      isEnding = true;
      process.send({ act: 'suicide' });
      server.close(() => process.exit(1));
      setTimeout(() => process.exit(1), LEAVE_WITHIN_MS);
    }
  });
  process.on('SIGUSR2', () => { throw new Error('SIGUSR2 stands for a fatal error'); });
  // The signal of a terminal goes to the whole group; the primary decides.
  process.on('SIGINT', () => {});
  // Node counts none of these; the contract asks for the fields, and no table of Node shows them.
  const unknown = { wakeups: 0, empty_wakeups: 0, client_errors: 0 };
  const report = () => {
    if (process.connected && Object.keys(counted).length > 0) {
      process.send({ act: 'count', ...counted });
      counted = {};
    }
  };
  setInterval(report, REPORT_EVERY_MS).unref();
  process.on('message', (message) => {
    if (message.act === 'stop') {
      report();
      process.send({ act: 'account', account: { id, ...books, ...unknown, ...account() } });
    }
  });
  if (serve !== undefined) {
    const [host, port] = flags.listen.split(':');
    server.listen(Number(port), host);
  }
}

function primary(flags) {
  const workers = Number(flags.workers);
  const start = process.hrtime.bigint();
  const secondsSince = (then) => Number(process.hrtime.bigint() - then) / 1e9;
  const accounts = [];
  const lives = { forks: 0, deaths: 0, suicides: 0 };
  const unused = { hangs: 0, reloads: 0, reloads_failed: 0, gave_up: false, passed: 0, returned: 0 };
  const counts = {};
  const vacantSince = new Map();
  const vacantMs = [];
  const pids = flags.scoreboard && scoreboard(flags.scoreboard, workers, start);
  const ready = new Set();
  let address;
  let living = 0;
  let isStopping = false;
  cluster.schedulingPolicy = flags.policy === 'rr' ? cluster.SCHED_RR : cluster.SCHED_NONE;
  const fork = (id) => {
    const worker = cluster.fork({ WORKER_ID: id });
    worker.number = id;
    lives.forks += 1;
    living += 1;
    pids?.(id, worker.process.pid);
  };
  const replace = (worker) => {
    worker.isReplaced = true;
    vacantSince.set(worker.number, process.hrtime.bigint());
    fork(worker.number);
  };
  cluster.on('listening', (worker, at) => {
    address ??= `${at.address}:${at.port}`;
    if (vacantSince.has(worker.number)) {
      vacantMs.push(1000 * secondsSince(vacantSince.get(worker.number)));
      vacantSince.delete(worker.number);
    }
    if (ready.size < workers && ready.add(worker.number).size === workers) {
      console.log(`ready ${address}`);
    }
  });
  cluster.on('message', (worker, message) => {
    if (message.act === 'account') {
      accounts.push(message.account);
      worker.process.kill('SIGKILL');
    } else if (message.act === 'count') {
      add(counts, message);
    } else if (message.act === 'suicide' && !isStopping) {
      lives.suicides += 1;
      replace(worker);
    }
  });
  cluster.on('exit', (worker) => {
    living -= 1;
    if (isStopping && living === 0) {
      report();
    } else if (!isStopping && !worker.isReplaced) {
      lives.deaths += 1;
      replace(worker);
    }
  });
  const report = () => {
    // The counts of a dead worker are lost with it.
    accounts.sort((a, b) => a.id - b.id);
    vacantMs.sort((a, b) => a - b);
    const of = (share) => vacantMs[Math.ceil(share * vacantMs.length) - 1];
    const recovery = vacantMs.length > 0 && { recovery_ms: { count: vacantMs.length, p50: of(0.5), max: of(1) } };
    const document = {
      model: 'node-cluster',
      listen: address,
      uptime_s: secondsSince(start),
      workers: accounts,
      master: account(),
      cluster: { ...lives, ...unused, ...recovery, counts },
    };
    process.stdout.write(JSON.stringify(document) + '\n', () => process.exit(0));
  };
  const stop = () => {
    isStopping = true;
    Object.values(cluster.workers).forEach((worker) => worker.send({ act: 'stop' }));
  };
  process.on('SIGTERM', stop);
  process.on('SIGINT', stop);
  for (let id = 0; id < workers; id += 1) {
    fork(id);
  }
}

// The scoreboard of src/scoreboard.rs, for programs that need the workers' pids; the workers' counters stay 0.
function scoreboard(path, rows, start) {
  const words = new BigUint64Array(16 * (1 + rows));
  words.set([BigInt(`0x${Buffer.from('acceptlb').toString('hex')}`), 2n, BigInt(rows), start, BigInt(process.pid)]);
  const file = fs.openSync(path, 'wx+');
  return (id, pid) => {
    words[16 * (1 + id)] = BigInt(pid);
    fs.writeSync(file, words, 0, words.byteLength, 0);
  };
}
