// Package api is the wire format between the operator and the task executor: the JSON
// bodies, paths, headers and limits, and the checks that a request must pass. Both sides
// import it, so it uses no Kubernetes types, which would triple the executor's size, and
// does no I/O.
//
// # Calls
//
//	PUT  /v1/tasks/{id}                    TaskRequest -> 201 or 200 Task
//	GET  /v1/tasks?since=BOOT:N&wait=25s   -> 200 TaskList
//	POST /v1/reset                         ResetRequest -> 200 ResetAnswer
//	GET  /v1/info                          -> 200 Info
//	GET  /healthz                          -> 204, or 503 (no token needed)
//
// Every answer names the executor's boot id in HeaderBootID. Errors are problem
// documents (RFC 9457).
package api
