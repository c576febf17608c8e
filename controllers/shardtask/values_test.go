package shardtask

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/utils/ptr"

	"github.com/opensandbox/operator/api/v1alpha1"
	executorapi "github.com/opensandbox/operator/executor/api"
)

// given are values that a test gives, by KIND/NAME/KEY or field path.
type given map[string]string

func (g given) Key(kind ValueKind, ref *v1alpha1.KeyRef) ([]byte, bool, error) {
	value, found := g[string(kind)+"/"+ref.Name+"/"+ref.Key]
	if !found && (ref.Optional == nil || !*ref.Optional) {
		return nil, false, &ValueError{v1alpha1.ReasonValuesNotFound, "missing"}
	}
	return []byte(value), found, nil
}

func (g given) Field(path string) (string, error) { return g[path], nil }

func fromSecret(name string, optional *bool) v1alpha1.EnvVar {
	return v1alpha1.EnvVar{Name: name, ValueFrom: &v1alpha1.ValueSource{SecretKeyRef: &v1alpha1.KeyRef{Name: "s", Key: "k", Optional: optional}}}
}

func TestVariablesAreRead(t *testing.T) {
	bs := batch()
	bs.Spec.TaskTemplate.Spec.Process.Env = []v1alpha1.EnvVar{
		fromSecret("A", nil),
		{Name: "B", ValueFrom: &v1alpha1.ValueSource{ConfigMapKeyRef: &v1alpha1.KeyRef{Name: "c", Key: "k"}}},
		{Name: "C", ValueFrom: &v1alpha1.ValueSource{FieldRef: &v1alpha1.FieldRef{FieldPath: "metadata.labels['a']"}}},
		{Name: "A", Value: "the last one wins"},
	}
	spec, err := ForShard(bs, 0, given{"Secret/s/k": "1", "ConfigMap/c/k": "2", "metadata.labels['a']": "3"})
	require.NoError(t, err)
	require.Equal(t, []executorapi.EnvVar{{Name: "A", Value: "1"}, {Name: "B", Value: "2"}, {Name: "C", Value: "3"}, {Name: "A", Value: "the last one wins"}}, spec.Process.Env)

	bs.Spec.TaskTemplate.Spec.Process.Env = []v1alpha1.EnvVar{{Name: "A", Value: "stands"}, fromSecret("A", ptr.To(true)), fromSecret("B", ptr.To(true))}
	spec, err = ForShard(bs, 0, given{})
	require.NoError(t, err)
	require.Equal(t, []executorapi.EnvVar{{Name: "A", Value: "stands"}}, spec.Process.Env, "what is optional and missing is left out")
}

func TestPatchesReplaceAVariableByItsName(t *testing.T) {
	fromMap := `{"configMapKeyRef":{"name":"c","key":"k"}}`
	for name, test := range map[string]struct {
		env   []v1alpha1.EnvVar
		patch string
		want  []executorapi.EnvVar
	}{
		"a value by a reference":             {[]v1alpha1.EnvVar{{Name: "A", Value: "x"}}, `[{"name":"A","valueFrom":` + fromMap + `}]`, []executorapi.EnvVar{{Name: "A", Value: "map"}}},
		"a reference by a value":             {[]v1alpha1.EnvVar{fromSecret("A", nil)}, `[{"name":"A","value":"x"}]`, []executorapi.EnvVar{{Name: "A", Value: "x"}}},
		"a reference by another":             {[]v1alpha1.EnvVar{fromSecret("A", nil)}, `[{"name":"A","valueFrom":` + fromMap + `}]`, []executorapi.EnvVar{{Name: "A", Value: "map"}}},
		"one that is there twice":            {[]v1alpha1.EnvVar{{Name: "A", Value: "1"}, {Name: "A", Value: "2"}}, `[{"name":"A","value":"3"}]`, []executorapi.EnvVar{{Name: "A", Value: "3"}}},
		"by one that the patch has twice":    {[]v1alpha1.EnvVar{{Name: "A", Value: "1"}}, `[{"name":"A","valueFrom":` + fromMap + `},{"name":"A","value":"3"}]`, []executorapi.EnvVar{{Name: "A", Value: "3"}}},
		"a new one that the patch has twice": {nil, `[{"name":"A","value":"2"},{"name":"A","valueFrom":` + fromMap + `}]`, []executorapi.EnvVar{{Name: "A", Value: "map"}}},
		"one that the patch takes away":      {[]v1alpha1.EnvVar{fromSecret("A", nil), {Name: "B"}}, `[{"name":"A","$patch":"delete"}]`, []executorapi.EnvVar{{Name: "B"}}},
	} {
		t.Run(name, func(t *testing.T) {
			bs := batch(`{"spec":{"process":{"env":` + test.patch + `}}}`)
			bs.Spec.TaskTemplate.Spec.Process.Env = test.env
			spec, err := ForShard(bs, 0, given{"ConfigMap/c/k": "map", "Secret/s/k": "secret"})
			require.NoError(t, err)
			last := map[string]executorapi.EnvVar{}
			for _, e := range spec.Process.Env {
				last[e.Name] = e
			}
			require.Len(t, last, len(test.want))
			for _, want := range test.want {
				require.Equal(t, want, last[want.Name])
			}
		})
	}
}

func TestAReferenceThatCannotBeIsRefusedWithItsField(t *testing.T) {
	for name, test := range map[string]struct{ variable, want string }{
		"both":              {`"value":"x","valueFrom":{"secretKeyRef":{"name":"s","key":"k"}}`, "value and valueFrom must not both be set"},
		"no source":         {`"valueFrom":{}`, "exactly one of"},
		"two sources":       {`"valueFrom":{"secretKeyRef":{"name":"s","key":"k"},"fieldRef":{"fieldPath":"metadata.name"}}`, "exactly one of"},
		"a source unknown":  {`"valueFrom":{"resourceFieldRef":{"resource":"limits.cpu"}}`, `unknown field "spec.process.env[0].valueFrom.resourceFieldRef"`},
		"no name":           {`"valueFrom":{"secretKeyRef":{"name":"","key":"k"}}`, "valueFrom.secretKeyRef: name and key must not be empty"},
		"no key":            {`"valueFrom":{"configMapKeyRef":{"name":"c"}}`, "valueFrom.configMapKeyRef: name and key must not be empty"},
		"a field elsewhere": {`"valueFrom":{"fieldRef":{"fieldPath":"spec.containers"}}`, `"spec.containers" is no field of a pod`},
	} {
		t.Run(name, func(t *testing.T) {
			bs := batch(`{"spec":{"process":{"env":[{"name":"NEW",` + test.variable + `}]}}}`)
			bs.Spec.TaskTemplate.Spec.Process.Env = nil
			_, err := ForShard(bs, 0, nil)
			require.ErrorContains(t, err, "spec.shardTaskPatches[0]: ")
			require.ErrorContains(t, err, test.want)
		})
	}
}

func TestAValueThatNoVariableCanHoldIsNotTold(t *testing.T) {
	bs := batch()
	bs.Spec.TaskTemplate.Spec.Process.Env = []v1alpha1.EnvVar{fromSecret("A", nil)}
	for _, value := range []string{"hush\x00", "hush\xff"} {
		_, err := ForShard(bs, 0, given{"Secret/s/k": value})
		var waits *ValueError
		require.ErrorAs(t, err, &waits)
		require.Equal(t, v1alpha1.ReasonValuesNotReadable, waits.Reason)
		require.Equal(t, `key "k" of Secret s holds bytes that the variable A cannot hold`, waits.Message)
	}
}

func TestFilesAreRead(t *testing.T) {
	bs := batch(`{"spec":{"files":[{"path":"/text","contentFrom":{"configMapKeyRef":{"name":"c","key":"k"}}},{"path":"/new","content":"n","mode":256}]}}`)
	bs.Spec.TaskTemplate.Spec.Files = []v1alpha1.File{
		{Path: "/text", Content: ptr.To("t"), Mode: ptr.To(int32(0o600))},
		{Path: "/bytes", ContentBase64: []byte{0xff, 0}},
		{Path: "/secret", ContentFrom: &v1alpha1.ContentSource{SecretKeyRef: &v1alpha1.KeyRef{Name: "s", Key: "k"}}},
		{Path: "/none", ContentFrom: &v1alpha1.ContentSource{SecretKeyRef: &v1alpha1.KeyRef{Name: "s", Key: "x", Optional: ptr.To(true)}}},
	}
	values := given{"Secret/s/k": "\xff\x00", "ConfigMap/c/k": "map"}
	spec, err := ForShard(bs, 1, values)
	require.NoError(t, err)
	require.Equal(t, []executorapi.File{
		{Path: "/text", Mode: 0o600, Content: []byte("t")}, {Path: "/bytes", Mode: 0o644, Content: []byte{0xff, 0}},
		{Path: "/secret", Mode: 0o644, Content: []byte{0xff, 0}},
	}, spec.Files)
	spec, err = ForShard(bs, 0, values)
	require.NoError(t, err)
	require.ElementsMatch(t, []executorapi.File{
		{Path: "/text", Mode: 0o600, Content: []byte("map")}, {Path: "/bytes", Mode: 0o644, Content: []byte{0xff, 0}},
		{Path: "/secret", Mode: 0o644, Content: []byte{0xff, 0}}, {Path: "/new", Mode: 0o400, Content: []byte("n")},
	}, spec.Files, "merged by path")
}

func TestAFileThatCannotBeIsRefusedWithItsField(t *testing.T) {
	for name, test := range map[string]struct{ file, want string }{
		"relative":      {`"path":"a","content":""`, `spec.files[0].path: "a" is not the absolute path of a file`},
		"above":         {`"path":"/a/../b","content":""`, "spec.files[0].path"},
		"no path":       {`"path":"","content":""`, "spec.files[0].path"},
		"a directory":   {`"path":"/a/","content":""`, "spec.files[0].path"},
		"no content":    {`"path":"/a"`, "spec.files[0]: exactly one of content"},
		"two contents":  {`"path":"/a","content":"","contentBase64":"eA=="`, "spec.files[0]: exactly one of content"},
		"no base64":     {`"path":"/a","contentBase64":"?"`, "base64"},
		"two sources":   {`"path":"/a","contentFrom":{"secretKeyRef":{"name":"s","key":"k"},"configMapKeyRef":{"name":"s","key":"k"}}`, "spec.files[0]: contentFrom: exactly one of"},
		"an empty key":  {`"path":"/a","contentFrom":{"secretKeyRef":{"name":"s"}}`, "spec.files[0]: contentFrom.secretKeyRef: name and key"},
		"a mode of bad": {`"path":"/a","content":"","mode":512`, "spec.files[0]: mode: 512"},
		"too much":      {`"path":"/a","content":"` + strings.Repeat("x", 1<<20+1) + `"`, "spec.files: the files hold 1048577 bytes, more than 1048576"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ForShard(batch(`{"spec":{"files":[{`+test.file+`}]}}`), 0, nil)
			require.ErrorContains(t, err, "spec.shardTaskPatches[0]: ")
			require.ErrorContains(t, err, test.want)
			require.Less(t, len(err.Error()), 300)
		})
	}
}

// The largest Secret that there can be fits; with a byte more the task waits.
func TestFilesHoldAMebibyte(t *testing.T) {
	bs := batch()
	bs.Spec.TaskTemplate.Spec.Files = []v1alpha1.File{
		{Path: "/a", ContentFrom: &v1alpha1.ContentSource{SecretKeyRef: &v1alpha1.KeyRef{Name: "s", Key: "k"}}}, {Path: "/b", Content: ptr.To("")},
	}
	values := given{"Secret/s/k": strings.Repeat("\xff", 1<<20)}
	_, err := ForShard(bs, 0, values)
	require.NoError(t, err)
	bs.Spec.TaskTemplate.Spec.Files[1].Content = ptr.To("x")
	_, err = ForShard(bs, 0, values)
	var waits *ValueError
	require.ErrorAs(t, err, &waits)
	require.Equal(t, v1alpha1.ReasonValuesNotReadable, waits.Reason)
	require.Contains(t, waits.Message, "the files hold 1048577 bytes, more than 1048576")
}

func TestManyLongPathsAreTooMuchForARequest(t *testing.T) {
	bs := batch()
	bs.Spec.TaskTemplate.Spec.Files = []v1alpha1.File{{Path: "/a", Content: ptr.To(strings.Repeat("x", 1<<20))}}
	for i := range executorapi.MaxFiles - 1 {
		bs.Spec.TaskTemplate.Spec.Files = append(bs.Spec.TaskTemplate.Spec.Files, v1alpha1.File{Path: fmt.Sprintf("/%s%d", strings.Repeat("p", 1000), i), Content: ptr.To("")})
	}
	for _, values := range []Values{nil, given{}} {
		_, err := ForShard(bs, 0, values)
		require.ErrorContains(t, err, "spec.taskTemplate: spec.files: with the files and their paths the task takes")
		require.NotErrorAs(t, err, new(*ValueError), "no value is waited for")
	}
}

func TestHooks(t *testing.T) {
	bs := batch(`{"spec":{"process":{"lifecycle":{"postStop":{"exec":{"command":["other"]}}}}}}`, `{"spec":{"process":{"lifecycle":{"postStop":null}}}}`,
		`{"spec":{"process":{"lifecycle":{"preStart":{"exec":{"command":[]}}}}}}`, `{"spec":{"process":{"lifecycle":{"preStart":{"timeoutSeconds":601}}}}}`)
	bs.Spec.TaskTemplate.Spec.Process.Lifecycle = &v1alpha1.ProcessLifecycle{
		PreStart: &v1alpha1.LifecycleHook{Exec: v1alpha1.ExecAction{Command: []string{"before"}}},
		PostStop: &v1alpha1.LifecycleHook{Exec: v1alpha1.ExecAction{Command: []string{"after"}}, TimeoutSeconds: ptr.To(int64(7))},
	}
	for shard, want := range map[int32]*executorapi.Hook{0: {Command: []string{"other"}, TimeoutSeconds: 7}, 1: nil, 9: {Command: []string{"after"}, TimeoutSeconds: 7}} {
		spec, err := ForShard(bs, shard, nil)
		require.NoError(t, err)
		require.Equal(t, &executorapi.Hook{Command: []string{"before"}, TimeoutSeconds: 30}, spec.Process.PreStart)
		require.Equal(t, want, spec.Process.PostStop)
	}
	_, err := ForShard(bs, 2, nil)
	require.ErrorContains(t, err, "spec.shardTaskPatches[2]: spec.process.lifecycle.preStart.exec.command: must not be empty")
	_, err = ForShard(bs, 3, nil)
	require.ErrorContains(t, err, "spec.process.lifecycle.preStart.timeoutSeconds: 601 is not between 1 and 600")

	require.Equal(t, 10*time.Minute, PostStopTime(bs), "a patch may say so")
	bs.Spec.ShardTaskPatches = nil
	require.Equal(t, 7*time.Second, PostStopTime(bs))
	require.Zero(t, PostStopTime(batch()))
}
