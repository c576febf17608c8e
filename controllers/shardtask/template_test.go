package shardtask

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/utils/ptr"

	"github.com/opensandbox/operator/api/v1alpha1"
	executorapi "github.com/opensandbox/operator/executor/api"
)

func batch(patches ...string) *v1alpha1.BatchSandbox {
	bs := &v1alpha1.BatchSandbox{}
	bs.Spec.TaskTemplate = &v1alpha1.TaskTemplate{Spec: v1alpha1.TaskSpec{
		TimeoutSeconds: ptr.To(int64(7)),
		Process: v1alpha1.ProcessSpec{
			Command: []string{"echo", "Default task"}, Args: []string{"x"}, WorkingDir: "/tmp",
			Env: []v1alpha1.EnvVar{{Name: "A", Value: "1"}, {Name: "B", Value: "2"}},
		},
	}}
	for _, p := range patches {
		bs.Spec.ShardTaskPatches = append(bs.Spec.ShardTaskPatches, v1alpha1.Patch{RawExtension: runtime.RawExtension{Raw: []byte(p)}})
	}
	return bs
}

func TestPatchesMergeEnvByNameAndReplaceCommandAndArgs(t *testing.T) {
	bs := batch(
		`{"spec":{"process":{"command":["true"],"env":[{"name":"B","value":"3"},{"name":"C","value":"4"}]}}}`,
		`null`,
		`{"spec":{"process":{"args":["with","arguments"]},"timeoutSeconds":null}}`,
	)
	original := bs.DeepCopy()
	for shard, want := range []executorapi.TaskSpec{
		{TimeoutSeconds: 7, Process: executorapi.Process{Command: []string{"true"}, Args: []string{"x"}, WorkingDir: "/tmp",
			Env: []executorapi.EnvVar{{Name: "B", Value: "3"}, {Name: "C", Value: "4"}, {Name: "A", Value: "1"}}}},
		{TimeoutSeconds: 7, Process: executorapi.Process{Command: []string{"echo", "Default task"}, Args: []string{"x"}, WorkingDir: "/tmp",
			Env: []executorapi.EnvVar{{Name: "A", Value: "1"}, {Name: "B", Value: "2"}}}},
		{Process: executorapi.Process{Command: []string{"echo", "Default task"}, Args: []string{"with", "arguments"}, WorkingDir: "/tmp",
			Env: []executorapi.EnvVar{{Name: "A", Value: "1"}, {Name: "B", Value: "2"}}}},
		{TimeoutSeconds: 7, Process: executorapi.Process{Command: []string{"echo", "Default task"}, Args: []string{"x"}, WorkingDir: "/tmp",
			Env: []executorapi.EnvVar{{Name: "A", Value: "1"}, {Name: "B", Value: "2"}}}},
	} {
		got, err := ForShard(bs, int32(shard), nil)
		require.NoError(t, err)
		require.ElementsMatch(t, want.Process.Env, got.Process.Env, "shard %d", shard)
		want.Process.Env, got.Process.Env = nil, nil
		require.Equal(t, want, got, "shard %d", shard)
	}
	require.Equal(t, original, bs, "the template is left alone")
}

func TestATaskThatCannotBeIsRefusedWithItsField(t *testing.T) {
	for name, test := range map[string]struct{ patch, want string }{
		"a misspelt field":     {`{"spec":{"process":{"comand":["true"]}}}`, `spec.shardTaskPatches[0]: the patched template is not a task template: unknown field "spec.process.comand"`},
		"a field of a type":    {`{"spec":{"process":{"command":"true"}}}`, "spec.shardTaskPatches[0]: "},
		"an empty command":     {`{"spec":{"process":{"command":[]}}}`, "spec.shardTaskPatches[0]: spec.process.command: must not be empty"},
		"no patch at all":      {`[1]`, "spec.shardTaskPatches[0]: not a strategic merge patch"},
		"a variable unnamed":   {`{"spec":{"process":{"env":[{"name":"","value":"1"}]}}}`, "spec.process.env"},
		"a task of a megabyte": {`{"spec":{"process":{"args":["` + strings.Repeat("x", 1<<20) + `"]}}}`, "spec.shardTaskPatches[0]: the task takes"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ForShard(batch(test.patch), 0, nil)
			require.ErrorContains(t, err, test.want)
			_, err = ForShard(batch(test.patch), 1, nil)
			require.NoError(t, err, "other shards are not affected")
		})
	}
}
