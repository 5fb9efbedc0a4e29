// The same with E2B's SDK for JavaScript, as far as it speaks in another way.

import assert from 'node:assert/strict'
import { createHash, randomBytes } from 'node:crypto'
import { ALL_TRAFFIC, CommandExitError, NotFoundError, Sandbox, SandboxNotFoundError, TimeoutError, Volume } from 'e2b'

async function eventually(what, test, seconds = 30) {
  const deadline = Date.now() + seconds * 1000
  while (Date.now() < deadline) {
    if (await test()) return
    await new Promise((done) => setTimeout(done, 50))
  }
  assert.fail(`${what} within ${seconds} s`)
}

const all = async (options) => {
  const pages = Sandbox.list(options)
  const found = []
  while (pages.hasNext) found.push(...(await pages.nextItems()))
  return found
}

const metadata = { app: 'js', 'odd key': 'a&b=c é' }
const sandbox = await Sandbox.create({ timeoutMs: 120_000, metadata, envs: { GREETING: 'hello' } })
try {
  // Lists and time.
  const other = await Sandbox.create({ timeoutMs: 120_000 })
  assert.deepEqual((await all({ limit: 1 })).map((s) => s.sandboxId).sort(), [sandbox.sandboxId, other.sandboxId].sort())
  assert.deepEqual((await all({ query: { metadata } })).map((s) => s.sandboxId), [sandbox.sandboxId])
  assert.deepEqual((await sandbox.getInfo()).metadata, metadata)
  await sandbox.setTimeout(600_000)
  assert.ok((await sandbox.getInfo()).endAt.getTime() - Date.now() > 500_000)
  assert.equal((await sandbox.getMetrics()).length, 1)

  // Commands.
  const result = await sandbox.commands.run('echo $GREETING $OWN; echo err >&2', { envs: { OWN: 'own' }, cwd: '/tmp' })
  assert.deepEqual([result.exitCode, result.stdout, result.stderr], [0, 'hello own\n', 'err\n'])
  await assert.rejects(sandbox.commands.run('exit 5'), (error) => error instanceof CommandExitError && error.exitCode === 5)
  await assert.rejects(sandbox.commands.run('sleep 60', { timeoutMs: 1000 }), TimeoutError)
  let streamed = ''
  await sandbox.commands.run('for i in 1 2 3; do echo $i; sleep 0.1; done', { onStdout: (data) => { streamed += data } })
  assert.equal(streamed, '1\n2\n3\n')
  const cat = await sandbox.commands.run('cat', { background: true, stdin: true })
  await sandbox.commands.sendStdin(cat.pid, 'in\n')
  await sandbox.commands.closeStdin(cat.pid)
  assert.equal((await cat.wait()).stdout, 'in\n')
  const sleeper = await sandbox.commands.run('echo begun; sleep 1000', { background: true })
  assert.ok((await sandbox.commands.list()).some((p) => p.pid === sleeper.pid))
  const follower = await sandbox.commands.connect(sleeper.pid)
  assert.equal(await sandbox.commands.kill(sleeper.pid), true)
  await assert.rejects(follower.wait(), CommandExitError)
  assert.equal(await sandbox.commands.kill(sleeper.pid), false)

  // A terminal.
  let shown = ''
  const terminal = await sandbox.pty.create({ cols: 80, rows: 24, onData: (data) => { shown += Buffer.from(data) } })
  await sandbox.pty.sendInput(terminal.pid, new TextEncoder().encode('stty size\n'))
  await eventually('its size', () => shown.includes('24 80'))
  await sandbox.pty.resize(terminal.pid, { cols: 100, rows: 30 })
  await sandbox.pty.sendInput(terminal.pid, new TextEncoder().encode('stty size; exit\n'))
  await eventually('its new size', () => shown.includes('30 100'))
  await terminal.wait()

  // Files.
  const bytes = randomBytes(20 << 20)
  await sandbox.files.write('large', bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length))
  const back = await sandbox.files.read('large', { format: 'bytes' })
  const sha256 = (data) => createHash('sha256').update(data).digest('hex')
  assert.equal(sha256(back), sha256(bytes))
  await sandbox.files.write([{ path: 'a/1', data: 'one' }, { path: 'a/2 é', data: 'two' }])
  assert.deepEqual((await sandbox.files.list('a')).map((e) => [e.name, e.type, e.size]), [['1', 'file', 3], ['2 é', 'file', 3]])
  assert.equal(await sandbox.files.read('a/2 é'), 'two')
  assert.equal(await sandbox.files.makeDir('a'), false)
  assert.equal((await sandbox.files.rename('a/1', 'b/1')).path, '/home/user/b/1')
  assert.equal(await sandbox.files.exists('a/1'), false)
  assert.equal((await sandbox.files.getInfo('b/1')).permissions, '-rw-r--r--')
  await sandbox.files.remove('b')
  await assert.rejects(sandbox.files.read('b/1'), NotFoundError)

  // What happens, as a stream.
  const events = []
  const watch = await sandbox.files.watchDir('a', (event) => events.push(`${event.type} ${event.name}`), { recursive: true })
  await sandbox.files.write('a/new', 'x')
  await eventually('created', () => events.includes('create new'))
  await sandbox.commands.run('rm a/new')
  await eventually('removed', () => events.includes('remove new'))
  await watch.stop()

  // Addresses for those who have no SDK.
  const address = await sandbox.downloadUrl('a/2 é', { useSignatureExpiration: 60_000 })
  assert.equal(await (await fetch(address)).text(), 'two')
  const form = new FormData()
  form.append('file', new Blob(['up']), 'ignored')
  assert.equal((await fetch(await sandbox.uploadUrl('up'), { method: 'POST', body: form })).status, 200)
  assert.equal(await sandbox.files.read('up'), 'up')

  // Snapshots, forks, volumes, networks.
  await sandbox.files.write('/home/user/kept', 'one')
  const snapshot = await sandbox.createSnapshot({ name: 'js-snap' })
  await sandbox.files.write('/home/user/kept', 'two')
  const pages = Sandbox.listSnapshots()
  assert.deepEqual((await pages.nextItems()).map((s) => s.snapshotId), [snapshot.snapshotId])
  const older = await Sandbox.create(snapshot.snapshotId, { timeoutMs: 60_000 })
  assert.equal(await older.files.read('/home/user/kept'), 'one')
  const [fork] = await sandbox.fork({ timeoutMs: 60_000 })
  assert.equal(await fork.files.read('/home/user/kept'), 'two')
  await older.kill()
  await fork.kill()
  assert.equal(await Sandbox.deleteSnapshot(snapshot.snapshotId), true)
  assert.equal(await Sandbox.deleteSnapshot(snapshot.snapshotId), false)

  const volume = await Volume.create('js-data')
  const mounted = await Sandbox.create({ timeoutMs: 60_000, volumeMounts: { '/data': volume } })
  await mounted.commands.run('echo kept > /data/file')
  assert.equal(await mounted.files.read('/data/file'), 'kept\n')
  await mounted.kill()
  assert.deepEqual((await Volume.list()).map((v) => v.name), ['js-data'])
  assert.equal(await Volume.destroy(volume.volumeId), true)

  const told = async (url) =>
    (await sandbox.commands.run(`curl -s -o /dev/null -m 20 -w '%{http_code}' --proxy http://127.0.0.1:61080 ${url} || true`)).stdout
  await sandbox.updateNetwork({ allowOut: ['a.invalid'], denyOut: [ALL_TRAFFIC] })
  assert.deepEqual([await told('http://a.invalid/'), await told('http://b.invalid/')], ['502', '403'])
  await sandbox.updateNetwork({})
  assert.equal(await told('http://b.invalid/'), '502')

  // Pause, resume, kill.
  await other.pause()
  assert.equal((await other.getInfo()).state, 'paused')
  const resumed = await Sandbox.connect(other.sandboxId)
  assert.equal((await resumed.commands.run('echo on')).stdout, 'on\n')
  assert.equal(await Sandbox.kill(other.sandboxId), true)
  await assert.rejects(Sandbox.connect(other.sandboxId), SandboxNotFoundError)
} finally {
  await sandbox.kill()
}
assert.equal(await sandbox.isRunning(), false)
assert.deepEqual(await all(), [])
console.log('ok')
