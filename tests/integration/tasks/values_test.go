package tasks

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/shardtask"
	"github.com/opensandbox/operator/controllers/taskvalues"
	executorapi "github.com/opensandbox/operator/executor/api"
)

const hush = "hush-1b7c0d" // the value of a Secret

func newSecret(t *testing.T, ns, value string) {
	t.Helper()
	s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "values"}, Data: map[string][]byte{"key": []byte(value)}}
	require.NoError(t, api.Create(t.Context(), s))
}

func secretValue(name string, optional bool) v1alpha1.EnvVar {
	return v1alpha1.EnvVar{Name: name, ValueFrom: &v1alpha1.ValueSource{SecretKeyRef: &v1alpha1.KeyRef{Name: "values", Key: "key", Optional: ptr.To(optional)}}}
}

// requestOf returns what the executor of a pod was asked.
func requestOf(t *testing.T, pod *corev1.Pod) executorapi.TaskRequest {
	t.Helper()
	x := node.executor(pod.UID)
	x.mu.Lock()
	defer x.mu.Unlock()
	require.Len(t, x.requests, 1)
	for _, request := range x.requests {
		return request
	}
	return executorapi.TaskRequest{}
}

func TestAValueReachesItsTaskAndNothingElse(t *testing.T) {
	ns := newNamespace(t)
	newPool(t, ns, 2, nil)
	bs := newBatch(t, ns, 2, func(bs *batch) {
		bs.Spec.TaskTemplate.Spec.Process.Env = []v1alpha1.EnvVar{
			secretValue("A", false),
			{Name: "POD", ValueFrom: &v1alpha1.ValueSource{FieldRef: &v1alpha1.FieldRef{FieldPath: "metadata.name"}}},
			{Name: "A", Value: "before"}, secretValue("A", false), // a name twice is no conflict
		}
		bs.Spec.ShardTaskPatches = patches(`{"spec":{"process":{"env":[{"name":"A","value":"literal"}]}}}`)
	}, "false")
	until(t, bs, func(bs *batch) bool {
		return reasonOf(bs, v1alpha1.ConditionTasksCompleted) == v1alpha1.ReasonValuesNotFound && bs.Status.TaskFailed == 1
	})
	require.Equal(t, int32(1), bs.Status.TaskPending, "the shard that names the Secret waits for it")
	newSecret(t, ns, hush)
	until(t, bs, completed)
	pods := held(t, bs)
	require.ElementsMatch(t, []executorapi.EnvVar{{Name: "A", Value: "literal"}, {Name: "POD", Value: pods[0].Name}}, requestOf(t, pods[0]).Spec.Process.Env)
	require.Equal(t, executorapi.EnvVar{Name: "A", Value: hush}, requestOf(t, pods[1]).Spec.Process.Env[3])
	require.Equal(t, executorapi.EnvVar{Name: "POD", Value: pods[1].Name}, requestOf(t, pods[1]).Spec.Process.Env[1])
	require.True(t, hasEvent(t, bs, v1alpha1.ReasonValuesNotFound))

	var events eventsv1.EventList
	var pools v1alpha1.PoolList
	var maps corev1.ConfigMapList
	for _, list := range []client.ObjectList{&events, &pools, &maps} {
		require.NoError(t, api.List(t.Context(), list, client.InNamespace(ns)))
	}
	written, err := json.Marshal([]any{bs, pods, events, pools, maps})
	require.NoError(t, err)
	log, err := os.ReadFile(op.log.Name())
	require.NoError(t, err)
	for _, form := range []string{hush, "aHVzaC0xYjdjMGQ"} { // as it is, and in base64
		require.NotContains(t, string(written), form)
		require.NotContains(t, string(log), form)
	}
}

func TestAShardGetsTheValueThatIsThereWhenItsTaskIsSent(t *testing.T) {
	ns := newNamespace(t)
	newSecret(t, ns, "before")
	pool := newPool(t, ns, 1, func(p *pool) { p.Spec.CapacitySpec.PoolMax = 1 })
	bs := newBatch(t, ns, 2, func(bs *batch) {
		bs.Spec.TaskTemplate.Spec.Process.Env = []v1alpha1.EnvVar{secretValue("A", false)}
	}, "wait")
	until(t, bs, runs(1))
	until(t, pool, func(*v1alpha1.Pool) bool {
		pool.Spec.CapacitySpec.PoolMax = 2
		secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "values"}, Data: map[string][]byte{"key": []byte("after")}}
		return api.Update(t.Context(), secret) == nil && api.Update(t.Context(), pool) == nil
	})
	until(t, bs, runs(2))
	for i, want := range []string{"before", "after"} {
		require.Equal(t, []executorapi.EnvVar{{Name: "A", Value: want}}, requestOf(t, held(t, bs)[i]).Spec.Process.Env)
	}
}

// A Secret holds at most 1 MiB, as do the files of a sandbox.
func TestTheLargestSecretReachesItsTask(t *testing.T) {
	ns := newNamespace(t)
	value := strings.Repeat("\xff", corev1.MaxSecretSize)
	newSecret(t, ns, value)
	newPool(t, ns, 2, nil)
	source := &v1alpha1.ContentSource{SecretKeyRef: &v1alpha1.KeyRef{Name: "values", Key: "key"}}
	bs := newBatch(t, ns, 2, func(bs *batch) {
		bs.Spec.TaskTemplate.Spec.Files = []v1alpha1.File{{Path: "/a", ContentFrom: source}}
		bs.Spec.ShardTaskPatches = patches(`{}`, `{"spec":{"files":[{"path":"/b","content":"x"}]}}`)
	}, "true")
	until(t, bs, func(bs *batch) bool {
		return bs.Status.TaskSucceed == 1 && reasonOf(bs, v1alpha1.ConditionTasksCompleted) == v1alpha1.ReasonValuesNotReadable
	})
	require.Equal(t, []executorapi.File{{Path: "/a", Mode: 0o644, Content: []byte(value)}}, requestOf(t, held(t, bs)[0]).Spec.Files)
	require.Equal(t, "with the values that the task names: spec.files: the files hold 1048577 bytes, more than 1048576",
		meta.FindStatusCondition(bs.Status.Conditions, v1alpha1.ConditionTasksCompleted).Message)
}

func TestAnOptionalValueIsNotWaitedFor(t *testing.T) {
	ns := newNamespace(t)
	newPool(t, ns, 1, nil)
	bs := newBatch(t, ns, 1, func(bs *batch) {
		bs.Spec.TaskTemplate.Spec.Process.Env = []v1alpha1.EnvVar{secretValue("A", true)}
	}, "true")
	until(t, bs, completed)
	require.Empty(t, requestOf(t, held(t, bs)[0]).Spec.Process.Env)
}

func TestFilesReachTheirTask(t *testing.T) {
	ns := newNamespace(t)
	newSecret(t, ns, hush)
	newPool(t, ns, 2, nil)
	bs := newBatch(t, ns, 2, func(bs *batch) {
		bs.Spec.TaskTemplate.Spec.Files = []v1alpha1.File{
			{Path: "/work/token", Mode: ptr.To(int32(0o400)), ContentFrom: &v1alpha1.ContentSource{SecretKeyRef: &v1alpha1.KeyRef{Name: "values", Key: "key"}}},
			{Path: "/work/.bytes", ContentBase64: []byte{0, 0xff}},
		}
		bs.Spec.ShardTaskPatches = patches(`{"spec":{"files":[{"path":"/work/.bytes","content":"text"}]}}`)
	}, "true")
	until(t, bs, completed)
	pods := held(t, bs)
	token := executorapi.File{Path: "/work/token", Mode: 0o400, Content: []byte(hush)}
	require.ElementsMatch(t, []executorapi.File{token, {Path: "/work/.bytes", Mode: 0o644, Content: []byte("text")}}, requestOf(t, pods[0]).Spec.Files)
	require.ElementsMatch(t, []executorapi.File{token, {Path: "/work/.bytes", Mode: 0o644, Content: []byte{0, 0xff}}}, requestOf(t, pods[1]).Spec.Files)
}

func TestHooksReachTheirTask(t *testing.T) {
	ns := newNamespace(t)
	newPool(t, ns, 1, nil)
	hook := func(command string, seconds *int64) *v1alpha1.LifecycleHook {
		return &v1alpha1.LifecycleHook{Exec: v1alpha1.ExecAction{Command: []string{command}}, TimeoutSeconds: seconds}
	}
	bs := newBatch(t, ns, 1, func(bs *batch) {
		bs.Spec.TaskTemplate.Spec.Process.Lifecycle = &v1alpha1.ProcessLifecycle{PreStart: hook("before", nil), PostStop: hook("after", ptr.To(int64(5)))}
	}, "true")
	until(t, bs, completed)
	process := requestOf(t, held(t, bs)[0]).Spec.Process
	require.Equal(t, &executorapi.Hook{Command: []string{"before"}, TimeoutSeconds: 30}, process.PreStart)
	require.Equal(t, &executorapi.Hook{Command: []string{"after"}, TimeoutSeconds: 5}, process.PostStop)

}

// Every refusal names the field, and the value where it is one.
func TestTheAPIServerRefusesWhatCannotBe(t *testing.T) {
	ns := newNamespace(t)
	text := ptr.To("x")
	many := make([]v1alpha1.File, 5000)
	for i := range many {
		many[i] = v1alpha1.File{Path: fmt.Sprintf("/%d", i), Content: text}
	}
	files := func(files ...v1alpha1.File) v1alpha1.TaskSpec { return v1alpha1.TaskSpec{Files: files} }
	env := func(name, value string, from *v1alpha1.ValueSource) v1alpha1.TaskSpec {
		return v1alpha1.TaskSpec{Process: v1alpha1.ProcessSpec{Env: []v1alpha1.EnvVar{{Name: name, Value: value, ValueFrom: from}}}}
	}
	key := func(name, key string) *v1alpha1.ValueSource {
		return &v1alpha1.ValueSource{SecretKeyRef: &v1alpha1.KeyRef{Name: name, Key: key}}
	}
	hooks := func(preStart, postStop *v1alpha1.LifecycleHook) v1alpha1.TaskSpec {
		return v1alpha1.TaskSpec{Process: v1alpha1.ProcessSpec{Lifecycle: &v1alpha1.ProcessLifecycle{PreStart: preStart, PostStop: postStop}}}
	}
	hook := func(seconds int64, command ...string) *v1alpha1.LifecycleHook {
		return &v1alpha1.LifecycleHook{Exec: v1alpha1.ExecAction{Command: append([]string{}, command...)}, TimeoutSeconds: &seconds}
	}
	for name, test := range map[string]struct {
		task v1alpha1.TaskSpec
		want string // after spec.taskTemplate.spec.
	}{
		"a variable without a name":     {env("", "x", nil), `process.env[0].name: Invalid value: ""`},
		"a variable with a bad name":    {env("a=b", "x", nil), `process.env[0].name: Invalid value: "a=b"`},
		"a value twice":                 {env("A", "x", key("s", "k")), "process.env[0]: Invalid value: value and valueFrom must not both be set"},
		"a value from nowhere":          {env("A", "", &v1alpha1.ValueSource{}), "process.env[0].valueFrom: Invalid value: exactly one of secretKeyRef, configMapKeyRef and fieldRef"},
		"a Secret without a name":       {env("A", "", key("", "k")), `process.env[0].valueFrom.secretKeyRef.name: Invalid value: ""`},
		"a Secret without a key":        {env("A", "", key("s", "")), `process.env[0].valueFrom.secretKeyRef.key: Invalid value: ""`},
		"a key with a slash":            {env("A", "", key("s", "a/b")), `process.env[0].valueFrom.secretKeyRef.key: Invalid value: "a/b"`},
		"a field that no task may name": {env("A", "", &v1alpha1.ValueSource{FieldRef: &v1alpha1.FieldRef{FieldPath: "spec.containers"}}), `process.env[0].valueFrom.fieldRef.fieldPath: Invalid value: "spec.containers"`},
		"no path":                       {files(v1alpha1.File{Content: text}), `files[0].path: Invalid value: ""`},
		"a relative path":               {files(v1alpha1.File{Path: "a/b", Content: text}), `files[0].path: Invalid value: "a/b"`},
		"a path upwards":                {files(v1alpha1.File{Path: "/a/../b", Content: text}), `files[0].path: Invalid value: "/a/../b"`},
		"a path that ends upwards":      {files(v1alpha1.File{Path: "/a/..", Content: text}), `files[0].path: Invalid value: "/a/.."`},
		"a path to here":                {files(v1alpha1.File{Path: "/a/./b", Content: text}), `files[0].path: Invalid value: "/a/./b"`},
		"a path with two slashes":       {files(v1alpha1.File{Path: "//a", Content: text}), `files[0].path: Invalid value: "//a"`},
		"the root":                      {files(v1alpha1.File{Path: "/", Content: text}), `files[0].path: Invalid value: "/"`},
		"a directory":                   {files(v1alpha1.File{Path: "/a/", Content: text}), `files[0].path: Invalid value: "/a/"`},
		"a path twice":                  {files(v1alpha1.File{Path: "/a", Content: text}, v1alpha1.File{Path: "/a", Content: text}), `files[1]: Duplicate value: {"path":"/a"}`},
		"no content":                    {files(v1alpha1.File{Path: "/a"}), "files[0]: Invalid value: exactly one of content, contentBase64 and contentFrom must be set"},
		"two contents":                  {files(v1alpha1.File{Path: "/a", Content: text, ContentBase64: []byte("x")}), "files[0]: Invalid value: exactly one of content"},
		"a content and its source":      {files(v1alpha1.File{Path: "/a", Content: text, ContentFrom: &v1alpha1.ContentSource{SecretKeyRef: &v1alpha1.KeyRef{Name: "s", Key: "k"}}}), "files[0]: Invalid value: exactly one of content"},
		"a content from nowhere":        {files(v1alpha1.File{Path: "/a", ContentFrom: &v1alpha1.ContentSource{}}), "files[0].contentFrom: Invalid value: exactly one of secretKeyRef and configMapKeyRef"},
		"a mode with setuid":            {files(v1alpha1.File{Path: "/a", Content: text, Mode: ptr.To(int32(0o4755))}), "files[0].mode: Invalid value: 2541"},
		"5,000 files":                   {files(many...), "files: Too many: 5000: must have at most 1024 items"},
		"a hook without a command":      {hooks(nil, hook(1)), "process.lifecycle.postStop.exec.command: Invalid value: 0: "},
		"a hook without time":           {hooks(hook(0, "x"), nil), "process.lifecycle.preStart.timeoutSeconds: Invalid value: 0"},
		"a hook with too much time":     {hooks(nil, hook(1<<40, "x")), "process.lifecycle.postStop.timeoutSeconds: Invalid value: 1099511627776"},
	} {
		t.Run(name, func(t *testing.T) {
			test.task.Process.Command = []string{"true"}
			bs := &batch{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "refused"}, Spec: v1alpha1.BatchSandboxSpec{PoolRef: "p", TaskTemplate: &v1alpha1.TaskTemplate{Spec: test.task}}}
			require.ErrorContains(t, api.Create(t.Context(), bs), "spec.taskTemplate.spec."+test.want)
		})
	}
}

// The role ships unbound; who may do all in the test's own name tells nothing.
func TestValuesAreReadWhereTheRoleIsBound(t *testing.T) {
	ns := newNamespace(t)
	newSecret(t, ns, hush)
	text, err := os.ReadFile("../../../config/rbac/task_values_reader_role.yaml")
	require.NoError(t, err)
	role := &rbacv1.ClusterRole{}
	require.NoError(t, yaml.UnmarshalStrict(text, role))
	role.Name = "opensandbox-" + role.Name // the prefix that config/default gives
	require.Equal(t, taskvalues.ReaderRole, role.Name)
	require.NoError(t, api.Create(t.Context(), role))
	t.Cleanup(func() { _ = api.Delete(t.Context(), role) })

	account := rest.CopyConfig(cluster)
	account.Impersonate.UserName = "system:serviceaccount:operators:operator"
	live, err := client.New(account, client.Options{Scheme: api.Scheme()})
	require.NoError(t, err)
	reader := taskvalues.New(live, nil)
	ref := &v1alpha1.KeyRef{Name: "values", Key: "key", Optional: ptr.To(true)}
	read := func() (string, error) {
		value, _, err := reader.For(t.Context(), types.NamespacedName{Namespace: ns, Name: "p"}, "u").Key(shardtask.KindSecret, ref)
		return string(value), err
	}
	_, err = read()
	var waits *shardtask.ValueError
	require.ErrorAs(t, err, &waits)
	require.Equal(t, v1alpha1.ReasonValuesNotReadable, waits.Reason)
	require.True(t, strings.HasPrefix(waits.Message, "namespace "+ns+" has no RoleBinding of ClusterRole opensandbox-task-values-reader to the operator's service account: "), waits.Message)
	require.Contains(t, waits.Message, account.Impersonate.UserName)

	require.NoError(t, api.Create(t.Context(), &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "task-values"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role.Name},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.UserKind, APIGroup: rbacv1.GroupName, Name: account.Impersonate.UserName}},
	}))
	require.Eventually(t, func() bool {
		value, err := read()
		return err == nil && value == hush
	}, patience, poll)

	// A patch may name what it likes, since the API server does not look into it.
	ref.Name = "../../" + ns + "/secrets/values"
	_, err = read()
	require.ErrorContains(t, err, "may not contain '/'", "no name leads out of the namespace")
}
