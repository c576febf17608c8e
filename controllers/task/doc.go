// Package task is the reconciler of tasks: it has the executor of every sandbox run
// the task of its shard, follows it, and stops it before the sandbox is given back.
//
// It writes nothing to the API server but events. What it knows is memory, rebuilt
// after a change of leaders from the status and by asking the executors again: a
// task has the same id and the same spec whoever asks, so it starts at most once in
// a sandbox. The batchsandbox reconciler, the only writer of the status, reads the
// results by Report and has tasks stopped by Stop; both return at once, and OnChange
// says when to ask again.
//
// decide, which is pure, says which executors to follow; one goroutine follows each.
package task
