// Package process runs tasks: it starts them inside the sandbox container,
// watches them, ends them with all their descendants, and keeps their records.
// It knows nothing of HTTP; executor/server calls it.
//
// Three processes of one binary stand behind a task:
//
//	executor ── supervisor ── launcher, which becomes the task's first process
//
// The supervisor is a subreaper: it stays an ancestor of whatever the task forks or
// daemonizes, which is how descendants are found. It reaps them, reports the end of the
// first process over a socket that no task can reach, and kills everything below it when
// the executor dies. If a task kills its supervisor, what is left of the task becomes a
// child of the executor, and the executor kills every child that is not a supervisor.
//
// The launcher enters the sandbox container's root, takes over the identity of
// that container's first process and executes the command. The container's root
// is a mount of another mount namespace, so a task that leaves its chroot is
// still in the sandbox and finds nothing of the executor's.
package process
