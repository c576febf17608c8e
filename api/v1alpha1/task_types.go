package v1alpha1

// TaskTemplate is the task that runs in a sandbox.
type TaskTemplate struct {
	// +required
	Spec TaskSpec `json:"spec"`
}

// TaskSpec says what to run and for how long.
type TaskSpec struct {
	// process is the process to start.
	// +required
	Process ProcessSpec `json:"process"`

	// files are written before the process starts, as the user of the sandbox container: each
	// whole or not at all, over what was there. Missing folders are made. Together they hold at
	// most 1 MiB.
	// +optional
	// +listType=map
	// +listMapKey=path
	// +patchMergeKey=path
	// +patchStrategy=merge
	// +kubebuilder:validation:MaxItems=1024
	Files []File `json:"files,omitempty" patchStrategy:"merge" patchMergeKey:"path"`

	// timeoutSeconds ends the task when it has run for so long, at most a year.
	// Unset: no limit.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=31536000
	TimeoutSeconds *int64 `json:"timeoutSeconds,omitempty"`
}

// ProcessSpec is a process inside the sandbox container.
type ProcessSpec struct {
	// command is the program and its first arguments; the program is looked up in
	// the sandbox's PATH. No shell is involved.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=1024
	Command []string `json:"command,omitempty"`

	// args follow command.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=1024
	Args []string `json:"args,omitempty"`

	// env is added to the environment of the sandbox container. Of a name that is there
	// twice the last one wins, as in a container.
	// +optional
	// +listType=atomic
	// +patchMergeKey=name
	// +patchStrategy=merge
	// +kubebuilder:validation:MaxItems=1024
	Env []EnvVar `json:"env,omitempty" patchStrategy:"merge" patchMergeKey:"name"`

	// workingDir is the directory to start in. Unset: that of the sandbox container.
	// +optional
	WorkingDir string `json:"workingDir,omitempty"`

	// lifecycle are commands that run before and after the process, as the process runs.
	// +optional
	Lifecycle *ProcessLifecycle `json:"lifecycle,omitempty"`
}

// ProcessLifecycle are the hooks of a task.
type ProcessLifecycle struct {
	// preStart runs before the process, and after the files are written. When it fails, the
	// task has failed (PreStartFailed) and the process is not started.
	// +optional
	PreStart *LifecycleHook `json:"preStart,omitempty"`

	// postStop runs after the process however that ended, also when the sandbox is given
	// back, whenever anything of the task has run. The result is the task's, and is told when
	// postStop is over.
	// +optional
	PostStop *LifecycleHook `json:"postStop,omitempty"`
}

// LifecycleHook is a command that runs before or after a process.
type LifecycleHook struct {
	// exec is the command.
	// +required
	Exec ExecAction `json:"exec"`

	// timeoutSeconds after which the hook is killed. Default 30.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=600
	TimeoutSeconds *int64 `json:"timeoutSeconds,omitempty"`
}

// ExecAction is a command in the sandbox container.
type ExecAction struct {
	// command is the program and its arguments. No shell is involved.
	// +required
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=1024
	Command []string `json:"command"`
}

// EnvVar is an environment variable: its value, or where the value is read.
//
// +kubebuilder:validation:XValidation:rule="!has(self.valueFrom) || !has(self.value) || size(self.value) == 0",message="value and valueFrom must not both be set"
type EnvVar struct {
	// name of the variable; it holds no "=".
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:Pattern=`^[^=]+$`
	Name string `json:"name"`

	// value of the variable. Default "".
	// +optional
	Value string `json:"value,omitempty"`

	// valueFrom says where the value is read, when the task is sent to its sandbox. The
	// operator keeps it nowhere.
	// +optional
	ValueFrom *ValueSource `json:"valueFrom,omitempty" patchStrategy:"replace"`
}

// ValueSource says where a value is read: exactly one field is set. Secrets and ConfigMaps
// are read only in namespaces where the ClusterRole opensandbox-task-values-reader is bound
// to the operator; elsewhere, and while one is missing, the task waits and the condition
// TasksCompleted says so.
//
// +kubebuilder:validation:XValidation:rule="(has(self.secretKeyRef) ? 1 : 0) + (has(self.configMapKeyRef) ? 1 : 0) + (has(self.fieldRef) ? 1 : 0) == 1",message="exactly one of secretKeyRef, configMapKeyRef and fieldRef must be set"
type ValueSource struct {
	// secretKeyRef is a key of a Secret of the namespace.
	// +optional
	SecretKeyRef *KeyRef `json:"secretKeyRef,omitempty"`

	// configMapKeyRef is a key of a ConfigMap of the namespace.
	// +optional
	ConfigMapKeyRef *KeyRef `json:"configMapKeyRef,omitempty"`

	// fieldRef is a field of the sandbox's pod.
	// +optional
	FieldRef *FieldRef `json:"fieldRef,omitempty"`
}

// KeyRef names a key of a Secret or of a ConfigMap.
type KeyRef struct {
	// name of the Secret or ConfigMap.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name"`

	// key whose value is read.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern=`^[-._a-zA-Z0-9]+$`
	Key string `json:"key"`

	// optional: the task runs without the value where the object or the key is missing.
	// Else it waits for them.
	// +optional
	Optional *bool `json:"optional,omitempty"`
}

// FieldRef names a field of the sandbox's pod.
type FieldRef struct {
	// apiVersion is v1, also where it is not set.
	// +optional
	// +kubebuilder:validation:Enum=v1
	APIVersion string `json:"apiVersion,omitempty"`

	// fieldPath is one of metadata.name, metadata.namespace, metadata.uid,
	// metadata.labels['KEY'], metadata.annotations['KEY'], spec.nodeName,
	// spec.serviceAccountName, status.hostIP, status.hostIPs, status.podIP and status.podIPs.
	// +required
	// +kubebuilder:validation:MaxLength=512
	// +kubebuilder:validation:Pattern=`^(metadata\.(name|namespace|uid|(labels|annotations)\['[^']+'\])|spec\.(nodeName|serviceAccountName)|status\.(hostIPs?|podIPs?))$`
	FieldPath string `json:"fieldPath"`
}

// File is a file that is written into a sandbox before its task starts.
//
// +kubebuilder:validation:XValidation:rule="(has(self.content) ? 1 : 0) + (has(self.contentBase64) ? 1 : 0) + (has(self.contentFrom) ? 1 : 0) == 1",message="exactly one of content, contentBase64 and contentFrom must be set"
type File struct {
	// path in the sandbox container: absolute, and without "." and ".." between its slashes.
	// +required
	// +kubebuilder:validation:MinLength=2
	// +kubebuilder:validation:MaxLength=1024
	// +kubebuilder:validation:Pattern=`^(/([^/.][^/]*|\.[^/.][^/]*|\.\.[^/]+))+$`
	Path string `json:"path"`

	// mode bits of the file, 0 to 0777. As in volumes, YAML takes them in octal and JSON in
	// decimal. Default 0644.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=511
	Mode *int32 `json:"mode,omitempty"`

	// content is text.
	// +optional
	Content *string `json:"content,omitempty"`

	// contentBase64 is any content, in base64.
	// +optional
	ContentBase64 []byte `json:"contentBase64,omitempty"`

	// contentFrom says where the content is read. A file whose content is optional and
	// missing is not written.
	// +optional
	ContentFrom *ContentSource `json:"contentFrom,omitempty" patchStrategy:"replace"`
}

// ContentSource says where the content of a file is read, as ValueSource does: exactly one
// field is set.
//
// +kubebuilder:validation:XValidation:rule="has(self.secretKeyRef) != has(self.configMapKeyRef)",message="exactly one of secretKeyRef and configMapKeyRef must be set"
type ContentSource struct {
	// secretKeyRef is a key of a Secret of the namespace.
	// +optional
	SecretKeyRef *KeyRef `json:"secretKeyRef,omitempty"`

	// configMapKeyRef is a key of a ConfigMap of the namespace.
	// +optional
	ConfigMapKeyRef *KeyRef `json:"configMapKeyRef,omitempty"`
}

// TaskResourcePolicy says what happens to a sandbox whose task has ended.
// +kubebuilder:validation:Enum=Retain;Release
type TaskResourcePolicy string

const (
	// TaskResourceRetain keeps the sandbox until the BatchSandbox is deleted.
	TaskResourceRetain TaskResourcePolicy = "Retain"
	// TaskResourceRelease gives the sandbox back as soon as its task has ended.
	TaskResourceRelease TaskResourcePolicy = "Release"
)

// FailedTask tells how one task failed.
type FailedTask struct {
	// sandbox is the name of the pod the task ran in.
	Sandbox string `json:"sandbox"`
	// shard is the position of the sandbox.
	Shard int32 `json:"shard"`
	// exitCode of the task's first process.
	// +optional
	ExitCode int32 `json:"exitCode,omitempty"`
	// signal that ended the task's first process, if one did.
	// +optional
	Signal int32 `json:"signal,omitempty"`
	// reason in one word.
	// +optional
	Reason string `json:"reason,omitempty"`
	// message is the last 256 bytes of the task's stderr, or why it could not start.
	// +optional
	Message string `json:"message,omitempty"`
}
