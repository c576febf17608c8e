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
// It is the only writer of a BatchSandbox' status.
package batchsandbox
