// Package batchsandbox is the reconciler of BatchSandboxes: it takes sandboxes
// from a Pool or makes them from a template, keeps as many as are asked for,
// shows them in endpoints and status, and gives them back.
//
// For a pooled BatchSandbox the order of steps is what keeps a sandbox from being
// handed to two owners or handed on dirty; see docs/architecture.md:
//
//	claim    ledger.Claim ▸ one metadata patch ▸ one status patch
//	release  metadata patch to alloc-release ▸ recycle ▸ metadata patch ▸ ledger.EndRelease
//	delete   recycle ▸ finalizer off ▸ ledger.EndRelease
//
// It is the only writer of a BatchSandbox's status. A file calls only those below it:
//
//	reconciler.go                          the steps of a reconcile, and what it is made of
//	pooled.go, template.go                 the two ways to get sandboxes
//	release.go, template_create.go         how pods are recycled, and how they are created
//	claim.go                               writes an allocation and settles an unclear outcome
//	status_write.go                        writes the status when it changed
//	writer.go, pods.go, events.go          everything that is sent to the API server
//	pass.go                                how many pods one reconcile goes through
//	pooled_plan.go, template_plan.go, status.go   what is decided: pure functions
//	object.go                              one BatchSandbox, and what is remembered of it
package batchsandbox
