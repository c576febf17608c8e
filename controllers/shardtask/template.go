package shardtask

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"k8s.io/apimachinery/pkg/util/strategicpatch"
	kjson "sigs.k8s.io/json"

	"github.com/opensandbox/operator/api/v1alpha1"
	executorapi "github.com/opensandbox/operator/executor/api"
)

// maxSpecBytes leaves room in a request for what the operator adds to the task.
const maxSpecBytes = executorapi.MaxRequestBytes / 2

// ForShard returns the task of a shard, with spec.shardTaskPatches applied. The
// error names the field that is wrong.
func ForShard(bs *v1alpha1.BatchSandbox, shard int32) (executorapi.TaskSpec, error) {
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
	spec := onWire(&template.Spec)
	if err := spec.Validate(); err != nil {
		return spec, fmt.Errorf("%s: %w", at, err)
	}
	if data, err := json.Marshal(spec); err != nil || len(data) > maxSpecBytes {
		return spec, fmt.Errorf("%s: the task takes %d bytes, more than the %d that it may", at, len(data), maxSpecBytes)
	}
	return spec, nil
}

// applyPatch is strict about what the patch leads to: a misspelt field would
// otherwise vanish and something else run than what was asked for.
func applyPatch(template *v1alpha1.TaskTemplate, patch []byte) (*v1alpha1.TaskTemplate, error) {
	original, err := json.Marshal(template)
	if err != nil {
		return nil, fmt.Errorf("marshalling spec.taskTemplate: %w", err)
	}
	merged, err := strategicpatch.StrategicMergePatch(original, patch, v1alpha1.TaskTemplate{})
	if err != nil {
		return nil, fmt.Errorf("not a strategic merge patch for a task template: %w", err)
	}
	result := &v1alpha1.TaskTemplate{}
	unknown, err := kjson.UnmarshalStrict(merged, result)
	if err == nil && len(unknown) > 0 {
		err = errors.Join(unknown...)
	}
	if err != nil {
		return nil, fmt.Errorf("the patched template is not a task template: %w", err)
	}
	return result, nil
}

func onWire(spec *v1alpha1.TaskSpec) executorapi.TaskSpec {
	task := executorapi.TaskSpec{Process: executorapi.Process{
		Command: spec.Process.Command, Args: spec.Process.Args, WorkingDir: spec.Process.WorkingDir,
	}}
	for _, e := range spec.Process.Env {
		task.Process.Env = append(task.Process.Env, executorapi.EnvVar{Name: e.Name, Value: e.Value})
	}
	if spec.TimeoutSeconds != nil {
		task.TimeoutSeconds = *spec.TimeoutSeconds
	}
	return task
}
