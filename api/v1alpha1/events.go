package v1alpha1

// Reasons of events on a BatchSandbox that no condition has. What a condition says is told
// by an event with the condition's own reason, once for each change; SandboxesRestarted and
// SandboxesEnded are told by events with the name of the condition, whenever there are more.
const (
	// EventExpired: the BatchSandbox was deleted, because its time was over.
	EventExpired = "Expired"
	// EventSandboxLost: pods of the pool are gone that the BatchSandbox held. Each is
	// replaced at its shard, and what ran there is gone.
	EventSandboxLost = "SandboxLost"
	// EventTaskRunsAgain: the sandbox that a task had run in was lost, and the task runs
	// again in the new one.
	EventTaskRunsAgain = "TaskRunsAgain"
	// EventAllocationRestored: somebody else changed the annotation alloc-status or
	// alloc-release; it was written back as it was.
	EventAllocationRestored = "AllocationRestored"
	// EventDoubleAllocation: a pod of the pool stood in the allocations of two
	// BatchSandboxes. One of them gets another pod.
	EventDoubleAllocation = "DoubleAllocation"
)
