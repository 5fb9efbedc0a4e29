// The same with Daytona's SDK for JavaScript, as far as it speaks in another way.

import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { Daytona, DaytonaNotFoundError } from '@daytonaio/sdk'

const daytona = new Daytona()
const all = async (query) => {
  const found = []
  for await (const sandbox of daytona.list(query)) found.push(sandbox.id)
  return found.sort()
}

const sandbox = await daytona.create({ name: 'js', labels: { app: 'js', odd: 'a&b=c é' }, envVars: { GREETING: 'hello' } })
try {
  // Lists.
  const other = await daytona.create({ labels: { app: 'other' }, autoStopInterval: 0 })
  assert.deepEqual(await all({ limit: 1 }), [sandbox.id, other.id].sort())
  assert.deepEqual(await all({ labels: { odd: 'a&b=c é' } }), [sandbox.id])
  assert.equal((await daytona.get('js')).id, sandbox.id)
  await assert.rejects(daytona.get('missing'), DaytonaNotFoundError)
  await assert.rejects(daytona.create({ snapshot: 'other' }))
  await other.delete()
  assert.deepEqual(await all(), [sandbox.id])

  // Commands.
  const done = await sandbox.process.executeCommand('echo $GREETING $OWN; echo err >&2; exit 5', '/tmp', { OWN: 'own' })
  assert.deepEqual([done.exitCode, done.result], [5, 'hello own\nerr\n'])
  await assert.rejects(sandbox.process.executeCommand('sleep 60', undefined, undefined, 1))
  await sandbox.process.createSession('s')
  await sandbox.process.executeSessionCommand('s', { command: 'cd /tmp' })
  const here = await sandbox.process.executeSessionCommand('s', { command: 'pwd; echo err >&2' })
  assert.deepEqual([here.exitCode, here.stdout, here.stderr], [0, '/tmp\n', 'err\n'])
  const slow = await sandbox.process.executeSessionCommand('s', { command: 'for i in 1 2 3; do echo $i; echo e$i >&2; sleep 0.1; done', runAsync: true })
  let out = ''
  let err = ''
  await sandbox.process.getSessionCommandLogs('s', slow.cmdId, (text) => { out += text }, (text) => { err += text })
  assert.deepEqual([out, err], ['1\n2\n3\n', 'e1\ne2\ne3\n'])
  await sandbox.process.deleteSession('s')

  // Files.
  const data = randomBytes(3_000_000)
  await sandbox.fs.uploadFile(data, '/tmp/b.bin')
  assert.ok(data.equals(await sandbox.fs.downloadFile('/tmp/b.bin')))
  await sandbox.fs.uploadFile(Buffer.from('grün'), '/tmp/odd/grün 🦀 (x).txt')
  assert.equal(String(await sandbox.fs.downloadFile('/tmp/odd/grün 🦀 (x).txt')), 'grün')
  assert.deepEqual((await sandbox.fs.listFiles('/tmp/odd')).map((f) => f.name), ['grün 🦀 (x).txt'])
  await sandbox.fs.createFolder('/tmp/d', '755')
  assert.equal((await sandbox.fs.getFileDetails('/tmp/d')).isDir, true)
  await sandbox.fs.deleteFile('/tmp/d', true)
  await assert.rejects(sandbox.fs.getFileDetails('/tmp/d'), DaytonaNotFoundError)

  // A terminal.
  let shown = ''
  const terminal = await sandbox.process.createPty({
    id: 'p', cols: 90, rows: 25, envs: { X: 'x y' }, onData: (bytes) => { shown += Buffer.from(bytes) },
  })
  await terminal.waitForConnection()
  await terminal.sendInput('stty size; echo "[$X]"; exit 3\n')
  assert.equal((await terminal.wait()).exitCode, 3)
  assert.ok(shown.includes('25 90') && shown.includes('[x y]'), shown)

  // Snapshots, forks, volumes, networks.
  await sandbox.fs.uploadFile(Buffer.from('one'), '/tmp/kept')
  await sandbox.createSnapshot('js-snap')
  await sandbox.fs.uploadFile(Buffer.from('two'), '/tmp/kept')
  const older = await daytona.create({ snapshot: 'js-snap' })
  assert.equal(String(await older.fs.downloadFile('/tmp/kept')), 'one')
  const fork = await sandbox.fork({ name: 'js-fork' })
  assert.equal(String(await fork.fs.downloadFile('/tmp/kept')), 'two')
  await older.delete()
  await fork.delete()
  const { items } = await daytona.snapshot.list()
  assert.deepEqual(items.map((s) => [s.name, s.state]), [['js-snap', 'active']])
  await daytona.snapshot.delete(items[0])

  const volume = await daytona.volume.get('js-data', true)
  const mounted = await daytona.create({ volumes: [{ volumeId: volume.id, mountPath: '/data' }] })
  await mounted.fs.uploadFile(Buffer.from('kept'), '/data/file')
  await mounted.delete()
  const again = await daytona.create({ volumes: [{ volumeId: 'js-data', mountPath: '/data' }] })
  assert.equal(String(await again.fs.downloadFile('/data/file')), 'kept')
  await again.delete()
  await daytona.volume.delete(volume)
  assert.deepEqual(await daytona.volume.list(), [])

  const told = async (url) =>
    (await sandbox.process.executeCommand(`curl -s -o /dev/null -m 20 -w '%{http_code}' --proxy http://127.0.0.1:61080 ${url} || true`)).result
  await sandbox.updateNetworkSettings({ domainAllowList: 'a.invalid' })
  assert.deepEqual([await told('http://a.invalid/'), await told('http://b.invalid/')], ['502', '403'])
  await sandbox.updateNetworkSettings({ networkBlockAll: false })
  assert.equal(await told('http://b.invalid/'), '502')

  // Repositories.
  const { git } = sandbox
  await git.init('/tmp/js-origin', true, 'main')
  await git.clone('/tmp/js-origin', '/tmp/js-work')
  await sandbox.fs.uploadFile(Buffer.from('one'), '/tmp/js-work/file')
  await git.add('/tmp/js-work', ['.'])
  const { sha } = await git.commit('/tmp/js-work', 'First', 'Ann', 'ann@example.com')
  await git.push('/tmp/js-work', undefined, undefined, undefined, undefined, true)
  await git.createBranch('/tmp/js-work', 'next')
  assert.deepEqual((await git.branches('/tmp/js-work')).branches, ['main', 'next'])
  const state = await git.status('/tmp/js-work')
  assert.deepEqual([state.currentBranch, state.fileStatus], ['next', []])
  assert.equal((await sandbox.process.executeCommand('git -C /tmp/js-origin rev-parse main')).result.trim(), sha)
  await assert.rejects(git.checkoutBranch('/tmp/js-work', 'missing'), (error) => error.statusCode === 404)

  // Ports, stop and start.
  const link = await sandbox.getPreviewLink(3000)
  assert.ok(link.url.startsWith(`http://3000-${sandbox.id}.localhost:`) && link.token)
  await sandbox.stop()
  await sandbox.refreshData()
  assert.equal(sandbox.state, 'stopped')
  await sandbox.start()
  assert.ok(data.equals(await sandbox.fs.downloadFile('/tmp/b.bin')))
} finally {
  await sandbox.delete()
}
assert.deepEqual(await all(), [])
// It waits for events, which are not served, as long as it is open.
await daytona[Symbol.asyncDispose]()
console.log('ok')
