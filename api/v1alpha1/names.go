package v1alpha1

// Kinds of this group, as they stand in owner references.
const (
	KindPool         = "Pool"
	KindBatchSandbox = "BatchSandbox"
)

// Annotations of a BatchSandbox. Other programs read them.
const (
	// AnnotationEndpoints holds a JSON list of pod IPs in shard order. A shard
	// without a sandbox is an empty string; the list ends at the last filled one.
	AnnotationEndpoints = "sandbox.opensandbox.io/endpoints"

	// AnnotationAllocStatus holds an AllocStatus, {"pods":[...],"poolRef":"..."}: the names of
	// the pool pods that are held, in shard order, and of their Pool.
	AnnotationAllocStatus = "sandbox.opensandbox.io/alloc-status"

	// AnnotationAllocRelease holds an AllocRelease, {"pods":[...]}: the names of pool pods
	// that were given up and are not clean yet.
	AnnotationAllocRelease = "sandbox.opensandbox.io/alloc-release"

	// AnnotationAllocReleased holds an AllocRelease: pool pods that OpenSandbox's controller has
	// taken back. The pool may have handed them on, so they are nothing of this BatchSandbox's
	// any more, although its alloc-status still names them. The operator takes it away.
	AnnotationAllocReleased = "sandbox.opensandbox.io/alloc-released"

	// AnnotationAllocator names the leader that took the object over while its demand was
	// not met: "identity/leaseTransitions". Writing it moves the resourceVersion, so that a
	// write of the previous leader that is still on its way fails.
	AnnotationAllocator = "sandbox.opensandbox.io/allocator"
)

// Labels of the operator's pods.
const (
	// LabelManagedBy with value ManagedBy is on every pod of the operator; it is
	// the one selector of its pod cache.
	LabelManagedBy = "app.kubernetes.io/managed-by"
	// ManagedBy is the value of LabelManagedBy.
	ManagedBy = "opensandbox-operator"

	// LabelPoolName is the name of the Pool a pod was made for.
	LabelPoolName = "sandbox.opensandbox.io/pool-name"
	// LabelPoolRevision is the hash of the template a pool pod was made from.
	LabelPoolRevision = "sandbox.opensandbox.io/pool-revision"
	// LabelPoolEvict, which users set, with any value, takes a pod out of its pool: at once
	// when it is idle, else when it comes back.
	LabelPoolEvict = "pool.opensandbox.io/evict"

	// LabelBatchSandboxName is the name of the BatchSandbox a template-mode pod belongs to.
	LabelBatchSandboxName = "batch-sandbox.sandbox.opensandbox.io/name"
	// LabelBatchSandboxPodIndex is the shard of a template-mode pod.
	LabelBatchSandboxPodIndex = "batch-sandbox.sandbox.opensandbox.io/pod-index"
)

// Finalizers.
const (
	// FinalizerPoolAllocation is on a BatchSandbox while it holds pool pods, and on
	// a Pool until the last pod that it handed out has come back.
	FinalizerPoolAllocation = "pool.sandbox.opensandbox.io/pool-allocation"
	// FinalizerTaskCleanup is on a BatchSandbox while tasks may run.
	FinalizerTaskCleanup = "batch-sandbox.sandbox.opensandbox.io/task-cleanup"
)

// Annotations of pods.
const (
	// AnnotationExecutorKey is on every pod with a task executor that the operator
	// can talk to: the id of the key that it was built with.
	AnnotationExecutorKey = "sandbox.opensandbox.io/executor-key"
	// AnnotationExecutorTLSKey is the public half of the key of this pod's executor: the
	// operator speaks to nobody else on the executor's port.
	AnnotationExecutorTLSKey = "sandbox.opensandbox.io/executor-tls-key"
	// AnnotationDefaultContainer, which kubectl reads too, names the container that
	// tasks run in where it is not the first.
	AnnotationDefaultContainer = "kubectl.kubernetes.io/default-container"
)

// The task executor, as it appears in pods.
const (
	// ExecutorContainerName is the container name of a task executor, injected or hand-written.
	ExecutorContainerName = "task-executor"
	// ExecutorProgram is the path of the program in the executor's image.
	ExecutorProgram = "/task-executor"
	// LauncherProgram is the path of its second copy there, which its user may read.
	LauncherProgram = "/launcher"
	// ExecutorPort is the TCP port an executor listens on.
	ExecutorPort = 5758
)

// AnyPool as spec.poolRef of a BatchSandbox has the operator choose a pool that fits.
const AnyPool = "*"

const (
	// MaxNameLength bounds the names of Pools and BatchSandboxes: they become label values.
	MaxNameLength = 63
	// MaxReplicas bounds spec.replicas of a BatchSandbox.
	MaxReplicas = 5000
	// MaxFailedTasks bounds status.failedTasks.
	MaxFailedTasks = 10
)
