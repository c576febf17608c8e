package v1alpha1

// Condition types.
const (
	// ConditionReady of a Pool: it has at least bufferMin idle ready pods, or all that
	// poolMax allows. Of a BatchSandbox: every sandbox that was asked for is ready.
	ConditionReady = "Ready"
	// ConditionTasksCompleted of a BatchSandbox: every shard's task has ended.
	ConditionTasksCompleted = "TasksCompleted"
	// ConditionSandboxesRestarted of a BatchSandbox: a container restarted in a
	// sandbox after it was handed over, so what ran there is gone.
	ConditionSandboxesRestarted = "SandboxesRestarted"
	// ConditionSandboxesEnded of a BatchSandbox: the containers of a sandbox finished by
	// themselves and are not restarted. It is kept until it is released.
	ConditionSandboxesEnded = "SandboxesEnded"
	// ConditionPoolAllocationPending of a BatchSandbox: sandboxes wait for the pool. The reason
	// is that of ConditionReady.
	ConditionPoolAllocationPending = "PoolAllocationPending"
	// ConditionPodFailed of a BatchSandbox: a sandbox cannot become ready. The reason is the
	// kubelet's, such as ErrImagePull, or PodsFailing where that is no single word.
	ConditionPodFailed = "PodFailed"
	// ConditionDeleting of either kind: it is being deleted, and the reason says what its
	// deletion waits for.
	ConditionDeleting = "Deleting"
	// ConditionRestartable of a Pool with recycle strategy Restart: whether its pods can be
	// made clean by a restart in place. Where they cannot they are deleted.
	ConditionRestartable = "Restartable"
)

// Reasons of ConditionRestartable.
const (
	// ReasonRestartable: the pods are restarted in place.
	ReasonRestartable = "Restartable"
	// ReasonNoRestarter: the pods were made without a task executor that restarts containers.
	ReasonNoRestarter = "NoRestarter"
	// ReasonRestartRulesUnknown: the cluster does not know the rule by which all containers of a pod are restarted in place.
	ReasonRestartRulesUnknown = "RestartRulesUnknown"
	// ReasonHandWrittenExecutor: the template has an executor of its own, or another container that restarts all.
	ReasonHandWrittenExecutor = "HandWrittenExecutor"
	// ReasonEphemeralContainer: an ephemeral container was added to a pod.
	ReasonEphemeralContainer = "EphemeralContainer"
	// ReasonHostNamespaces: the pods use namespaces of their node.
	ReasonHostNamespaces = "HostNamespaces"
	// ReasonSharedProcessNamespace: the containers share a process namespace, whose first process is not restarted.
	ReasonSharedProcessNamespace = "SharedProcessNamespace"
	// ReasonRuntimeClass: the pods name a RuntimeClass; its runtime may keep what an owner leaves where no look finds it.
	ReasonRuntimeClass = "RuntimeClass"
	// ReasonServiceAccountToken: the pods have a service account token, which is not renewed.
	ReasonServiceAccountToken = "ServiceAccountToken"
	// ReasonVolume: the pods have a volume that keeps what an owner leaves in it.
	ReasonVolume = "Volume"
	// ReasonResourceClaim: the pods have a resource claim, whose device or directory is not restarted.
	ReasonResourceClaim = "ResourceClaim"
	// ReasonPrivilegedContainer: a container is privileged.
	ReasonPrivilegedContainer = "PrivilegedContainer"
	// ReasonProcMount: a container sees the node's /proc unmasked.
	ReasonProcMount = "ProcMount"
	// ReasonCapability: a container has a capability that the baseline Pod Security Standard does not allow.
	ReasonCapability = "Capability"
)

// Reasons of ConditionReady on a BatchSandbox. It is True with ReasonAllReady and False with
// the others.
const (
	// ReasonAllReady: every sandbox that was asked for is ready.
	ReasonAllReady = "AllReady"
	// ReasonPodsNotReady: all sandboxes exist, and some are not ready yet.
	ReasonPodsNotReady = "PodsNotReady"
	// ReasonPodsFailing: a sandbox cannot become ready; the message has the kubelet's reason.
	ReasonPodsFailing = "PodsFailing"
	// ReasonPodsUnschedulable: a sandbox has no node yet; the message has the scheduler's reason.
	// An autoscaler may still bring a node, or somebody the volume that it waits for.
	ReasonPodsUnschedulable = "PodsUnschedulable"
	// ReasonPoolNotFound: spec.poolRef names no Pool of this namespace, or none fits where it is "*"; the message says what each lacks.
	ReasonPoolNotFound = "PoolNotFound"
	// ReasonPoolExhausted: the pool has fewer ready sandboxes than are asked for.
	ReasonPoolExhausted = "PoolExhausted"
	// ReasonPoolTooSmall: spec.minAvailable is more than the pool's poolMax, so that as many can
	// never be had at once. It is waited for, in nobody's way, until poolMax is raised.
	ReasonPoolTooSmall = "PoolTooSmall"
	// ReasonPoolDeleting, also on a Pool: the pool is being deleted and hands nothing out any more.
	ReasonPoolDeleting = "PoolDeleting"
	// ReasonTemplateInvalid, also on a Pool: the API server refuses the pod of the template, or a patch does not apply.
	ReasonTemplateInvalid = "TemplateInvalid"
	// ReasonCreateFailed, also on a Pool: the API server did not take a pod for another reason, such as a quota.
	ReasonCreateFailed = "CreateFailed"
	// ReasonAllocationUnreadable: the annotation alloc-status or alloc-release cannot be
	// parsed. The pods that it may name are set aside until it can be read or the object is gone.
	ReasonAllocationUnreadable = "AllocationUnreadable"
	// ReasonAllocationTooLarge: the allocation would not fit into the 256 KiB of an object's
	// annotations; nothing was claimed.
	ReasonAllocationTooLarge = "AllocationTooLarge"
	// ReasonAllocationRefused: the API server refuses the write of the allocation.
	ReasonAllocationRefused = "AllocationRefused"
	// ReasonScaling: sandboxes are being created.
	ReasonScaling = "Scaling"
)

// Reasons of ConditionReady on a Pool. It is True with ReasonBufferFilled and ReasonAtPoolMax
// and False with the others; ReasonPoolDeleting, ReasonTemplateInvalid and ReasonCreateFailed
// are reasons of both kinds.
const (
	// ReasonBufferFilled: the pool has the idle pods it is to keep.
	ReasonBufferFilled = "BufferFilled"
	// ReasonFilling: pods are being created or are starting.
	ReasonFilling = "Filling"
	// ReasonAtPoolMax: the buffer is not full and poolMax allows no more pods.
	ReasonAtPoolMax = "AtPoolMax"
	// ReasonPodsCannotStart: pods of the pool cannot become ready; the message has the kubelet's reason.
	ReasonPodsCannotStart = "PodsCannotStart"
)

// Reasons of ConditionDeleting. It is True while the deletion waits.
const (
	// ReasonWaitingForSandboxes: a Pool waits until the pods that are held have come back.
	ReasonWaitingForSandboxes = "WaitingForSandboxes"
	// ReasonRecycling: a BatchSandbox waits until its sandboxes are recycled.
	ReasonRecycling = "Recycling"
	// ReasonStoppingTasks: a BatchSandbox waits until its tasks are stopped.
	ReasonStoppingTasks = "StoppingTasks"
)

// Reasons of ConditionTasksCompleted. It is True with ReasonTasksSucceeded and
// ReasonTasksFailed and False with the others.
const (
	// ReasonTasksSucceeded: every task has succeeded.
	ReasonTasksSucceeded = "TasksSucceeded"
	// ReasonTasksFailed: every task has ended, and some have failed.
	ReasonTasksFailed = "TasksFailed"
	// ReasonTasksRunning: some tasks have not ended yet.
	ReasonTasksRunning = "TasksRunning"
	// ReasonTaskTemplateInvalid: a patch of spec.shardTaskPatches does not apply, or what it
	// leads to is no task; the message names it.
	ReasonTaskTemplateInvalid = "TaskTemplateInvalid"
	// ReasonExecutorMissing: a sandbox has no task executor, so its task cannot run.
	ReasonExecutorMissing = "ExecutorMissing"
	// ReasonExecutorClock: a task executor refuses what the operator asks for because one of their clocks is off.
	ReasonExecutorClock = "ExecutorClock"
	// ReasonExecutorRefuses: a task executor does not take a task now; the message says why. A
	// launcher that was killed comes back only when its container restarts.
	ReasonExecutorRefuses = "ExecutorRefuses"
	// ReasonExecutorUnreachable: a task executor does not answer.
	ReasonExecutorUnreachable = "ExecutorUnreachable"
	// ReasonValuesNotReadable: the operator cannot read or use a Secret or ConfigMap that a task names. The message
	// says why; where the operator may not, it names the RoleBinding that is missing.
	ReasonValuesNotReadable = "ValuesNotReadable"
	// ReasonValuesNotFound: a Secret, a ConfigMap or a key that a task names is not there yet.
	ReasonValuesNotFound = "ValuesNotFound"
)

// Reasons of ConditionSandboxesRestarted. It is True while there is such a sandbox.
const (
	// ReasonContainersRestarted: at least one container restarted after its sandbox was
	// handed over.
	ReasonContainersRestarted = "ContainersRestarted"
)

// Reasons of ConditionSandboxesEnded. It is True while there is such a sandbox.
const (
	// ReasonContainersEnded, also of ConditionReady: the containers of at least one
	// sandbox finished by themselves and are not restarted.
	ReasonContainersEnded = "ContainersEnded"
)

// Reasons of a task that failed, where the operator finds it. An executor has others, which
// are listed at the end.
const (
	// ReasonSandboxEnded: the containers of the sandbox finished before the task.
	ReasonSandboxEnded = "SandboxEnded"
	// ReasonSandboxRestarted: the sandbox container ended or restarted while the task ran in it.
	ReasonSandboxRestarted = "SandboxRestarted"
	// ReasonTaskLost: the executor knows nothing of the task any more.
	ReasonTaskLost = "TaskLost"
	// ReasonRefused: the executor takes no such task; the message says what it objects to.
	ReasonRefused = "Refused"
)
