package shardtask

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	kjson "sigs.k8s.io/json"

	"github.com/opensandbox/operator/api/v1alpha1"
	executorapi "github.com/opensandbox/operator/executor/api"
)

// maxRequestBytes leaves room for what the operator adds to the task.
const maxRequestBytes = executorapi.MaxRequestBytes - 1<<10

// ForShard returns the task of a shard, with spec.shardTaskPatches applied and what it names
// read from values, where it is not nil. The error names the field that is wrong; it is a
// ValueError where the task has to wait for a value.
func ForShard(bs *v1alpha1.BatchSandbox, shard int32, values Values) (executorapi.TaskSpec, error) {
	template, at := bs.Spec.TaskTemplate, "spec.taskTemplate"
	if template == nil {
		return executorapi.TaskSpec{}, errors.New("spec.taskTemplate: is not set")
	}
	if shard >= 0 && int(shard) < len(bs.Spec.ShardTaskPatches) {
		patch := bytes.TrimSpace(bs.Spec.ShardTaskPatches[shard].Raw)
		if len(patch) > 0 && !bytes.Equal(patch, []byte("null")) {
			at = fmt.Sprintf("spec.shardTaskPatches[%d]", shard)
			var err error
			if template, err = applyPatch(template, patch); err != nil {
				return executorapi.TaskSpec{}, fmt.Errorf("%s: %w", at, err)
			}
		}
	}
	spec, names, err := check(&template.Spec)
	if err != nil {
		return spec, fmt.Errorf("%s: %w", at, err)
	}
	if values == nil || !names {
		return spec, nil
	}
	return withValues(&template.Spec, values)
}

// fieldOfHook turns the name of a field on the wire into that of the template.
var fieldOfHook = strings.NewReplacer(
	"process.preStart.command", "process.lifecycle.preStart.exec.command", "process.preStart.", "process.lifecycle.preStart.",
	"process.postStop.command", "process.lifecycle.postStop.exec.command", "process.postStop.", "process.lifecycle.postStop.")

// check returns the task without the values that are to be read, and whether it names any.
func check(task *v1alpha1.TaskSpec) (executorapi.TaskSpec, bool, error) {
	var values noValues
	spec, err := onWire(task, &values)
	if err == nil {
		err = spec.Validate()
	}
	var wrong *executorapi.FieldError
	if errors.As(err, &wrong) {
		wrong.Field = fieldOfHook.Replace(wrong.Field)
	}
	if err != nil {
		return spec, values.named, err
	}
	process := spec
	process.Files = nil
	if size := sizeOf(process); size > executorapi.MaxProcessBytes {
		return spec, values.named, fmt.Errorf("the task takes %d bytes without its files, more than the %d that it may", size, executorapi.MaxProcessBytes)
	}
	if len(spec.Files) == 0 {
		return spec, values.named, nil
	}
	if size := sizeOf(spec); size > maxRequestBytes {
		return spec, values.named, fmt.Errorf("spec.files: with the files and their paths the task takes %d bytes, more than the %d that it may", size, maxRequestBytes)
	}
	return spec, values.named, nil
}

func withValues(task *v1alpha1.TaskSpec, values Values) (executorapi.TaskSpec, error) {
	spec, err := onWire(task, values)
	if err != nil {
		return spec, err
	}
	// What was right without the values is too much with them.
	if err := spec.Validate(); err != nil {
		return spec, &ValueError{v1alpha1.ReasonValuesNotReadable, "with the values that the task names: " + err.Error()}
	}
	if size := sizeOf(spec); size > maxRequestBytes {
		return spec, &ValueError{v1alpha1.ReasonValuesNotReadable, fmt.Sprintf("the task takes %d bytes with the values that it names, more than the %d that it may", size, maxRequestBytes)}
	}
	return spec, nil
}

func sizeOf(spec executorapi.TaskSpec) int {
	data, _ := json.Marshal(spec) // strings and numbers always marshal
	return len(data)
}

// applyPatch is strict about what the patch leads to: a misspelt field would
// otherwise vanish and something else run than what was asked for.
func applyPatch(template *v1alpha1.TaskTemplate, patch []byte) (*v1alpha1.TaskTemplate, error) {
	template = template.DeepCopy()
	template.Spec.Process.Env = lastOfEachName(template.Spec.Process.Env)
	original, err := runtime.DefaultUnstructuredConverter.ToUnstructured(template)
	if err != nil {
		return nil, fmt.Errorf("converting spec.taskTemplate: %w", err)
	}
	var changes map[string]any
	if err := utiljson.Unmarshal(patch, &changes); err != nil {
		return nil, fmt.Errorf("not a strategic merge patch for a task template: %w", err)
	}
	replaceAlternatives(changes, valueFields, "spec", "process", "env")
	replaceAlternatives(changes, contentFields, "spec", "files")
	merged, err := strategicpatch.StrategicMergeMapPatch(original, changes, v1alpha1.TaskTemplate{})
	if err != nil {
		return nil, fmt.Errorf("not a strategic merge patch for a task template: %w", err)
	}
	text, err := json.Marshal(merged)
	if err != nil {
		return nil, fmt.Errorf("marshalling the patched template: %w", err)
	}
	result := &v1alpha1.TaskTemplate{}
	unknown, err := kjson.UnmarshalStrict(text, result)
	if err == nil && len(unknown) > 0 {
		err = errors.Join(unknown...)
	}
	if err != nil {
		return nil, fmt.Errorf("the patched template is not a task template: %w", err)
	}
	return result, nil
}

// lastOfEachName leaves out the variables that a later one of their name replaces: a patch
// would change the first one.
func lastOfEachName(env []v1alpha1.EnvVar) []v1alpha1.EnvVar {
	last := make(map[string]int, len(env))
	for i := range env {
		last[env[i].Name] = i
	}
	var kept []v1alpha1.EnvVar
	for i := range env {
		if last[env[i].Name] == i {
			kept = append(kept, env[i])
		}
	}
	return kept
}

// The ways to say the value of a variable and the content of a file, of which each has one.
var (
	valueFields   = []string{"value", "valueFrom"}
	contentFields = []string{"content", "contentBase64", "contentFrom"}
)

// replaceAlternatives has a patch that says a value in one way take away where the template
// says it in another.
func replaceAlternatives(patch map[string]any, alternatives []string, path ...string) {
	value, _, _ := unstructured.NestedFieldNoCopy(patch, path...)
	list, _ := value.([]any)
	for _, element := range list {
		fields, _ := element.(map[string]any)
		says := func(name string) bool { _, there := fields[name]; return there }
		if !slices.ContainsFunc(alternatives, says) {
			continue
		}
		for _, name := range alternatives {
			if !says(name) {
				fields[name] = nil
			}
		}
	}
}

func onWire(spec *v1alpha1.TaskSpec, values Values) (executorapi.TaskSpec, error) {
	env, err := environment(spec.Process.Env, values)
	if err != nil {
		return executorapi.TaskSpec{}, err
	}
	files, err := filesOf(spec.Files, values)
	task := executorapi.TaskSpec{Files: files, Process: executorapi.Process{
		Command: spec.Process.Command, Args: spec.Process.Args, Env: env, WorkingDir: spec.Process.WorkingDir,
	}}
	if hooks := spec.Process.Lifecycle; hooks != nil {
		task.Process.PreStart, task.Process.PostStop = hookOf(hooks.PreStart), hookOf(hooks.PostStop)
	}
	if spec.TimeoutSeconds != nil {
		task.TimeoutSeconds = *spec.TimeoutSeconds
	}
	return task, err
}

func hookOf(hook *v1alpha1.LifecycleHook) *executorapi.Hook {
	if hook == nil {
		return nil
	}
	result := &executorapi.Hook{Command: hook.Exec.Command, TimeoutSeconds: executorapi.DefaultHookSeconds}
	if hook.TimeoutSeconds != nil {
		result.TimeoutSeconds = *hook.TimeoutSeconds
	}
	return result
}

// PostStopTime is how long a postStop hook may take when a sandbox is given back, at most.
func PostStopTime(bs *v1alpha1.BatchSandbox) time.Duration {
	if bs.Spec.TaskTemplate == nil {
		return 0
	}
	for i := range bs.Spec.ShardTaskPatches {
		if bytes.Contains(bs.Spec.ShardTaskPatches[i].Raw, []byte(`"postStop"`)) {
			return executorapi.MaxHookSeconds * time.Second
		}
	}
	if hooks := bs.Spec.TaskTemplate.Spec.Process.Lifecycle; hooks != nil && hooks.PostStop != nil {
		return hookOf(hooks.PostStop).Timeout()
	}
	return 0
}
