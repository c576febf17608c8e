package task

import (
	"encoding/json"
	"net/http"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/opensandbox/operator/api/v1alpha1"
	executorapi "github.com/opensandbox/operator/executor/api"
)

// needSecret has the task name a key of a Secret.
func (b *bench) needSecret() {
	b.bs.Spec.TaskTemplate.Spec.Process.Env = []v1alpha1.EnvVar{{Name: "A", ValueFrom: &v1alpha1.ValueSource{SecretKeyRef: &v1alpha1.KeyRef{Name: "s", Key: "k"}}}}
}

// The value was there when an earlier leader sent the task, and is not any more.
func TestATaskThatRunsAlreadyWaitsForNoValue(t *testing.T) {
	t.Parallel()
	var ended atomic.Bool
	b := newBench(t, func(b *bench, w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut {
			t.Error("its value is not there")
		}
		list := executorapi.TaskList{BootID: "boot", Version: 1, Tasks: []executorapi.Task{{ID: taskID(b.bs.UID, 0), State: executorapi.Running}}}
		if ended.Load() {
			list.Version, list.Tasks[0].State = 2, executorapi.Succeeded
		}
		_ = json.NewEncoder(w).Encode(list)
	})
	b.needSecret()
	b.follow(t)
	require.Eventually(t, func() bool { return b.Report(b.bs).Running == 1 }, patience, poll)
	ended.Store(true)
	require.Eventually(t, func() bool { return b.Report(b.bs).Completed }, patience, poll)
}

// What a new leader sends is not what the earlier one has sent.
func TestATaskWhoseValueHasChangedSinceKeepsItsResult(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(b *bench, w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut {
			w.WriteHeader(http.StatusConflict)
			_ = json.NewEncoder(w).Encode(executorapi.Problem{Status: http.StatusConflict, Reason: executorapi.ProblemSpecDiffers})
			return
		}
		_ = json.NewEncoder(w).Encode(executorapi.TaskList{BootID: "boot", Version: 1, Tasks: []executorapi.Task{{ID: taskID(b.bs.UID, 0), State: executorapi.Succeeded}}})
	})
	b.needSecret()
	require.NoError(t, b.Client.Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "s"}, Data: map[string][]byte{"k": []byte("new")}}))
	b.follow(t)
	require.Eventually(t, func() bool { return len(b.Report(b.bs).Succeeded) == 1 }, patience, poll)
}

func TestATaskWaitsForItsValueAndThenRuns(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	b := newBench(t, func(b *bench, w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut {
			_ = json.NewEncoder(w).Encode(executorapi.Task{ID: taskID(b.bs.UID, 0), State: executorapi.Succeeded})
			return
		}
		asked.Add(1)
		_ = json.NewEncoder(w).Encode(executorapi.TaskList{BootID: "boot", Version: 1})
	})
	b.needSecret()
	b.follow(t)
	require.Eventually(t, func() bool { return b.Report(b.bs).Reason == v1alpha1.ReasonValuesNotFound }, patience, poll)
	require.NoError(t, b.Client.Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "s"}, Data: map[string][]byte{"k": nil}}))
	require.Eventually(t, func() bool { return b.Report(b.bs).Completed }, patience, poll)
	require.Equal(t, int64(1), asked.Load(), "once is enough: nobody else sends it")
}

func TestValuesAreLookedForAgainWithinHalfAMinute(t *testing.T) {
	t.Parallel()
	for waits, most := range map[bool]float64{true: 30, false: 7.5} {
		f := follower{waits: waits}
		longest := 0.0
		for range 10000 {
			longest = max(longest, f.nextPause().Seconds())
		}
		require.LessOrEqual(t, longest, most)
		require.Greater(t, longest, most*0.9, "it does back off")
	}
}

// What it does not know must not be left out in silence.
func TestAnExecutorOfAnEarlierVersionRefusesFilesAndHooks(t *testing.T) {
	t.Parallel()
	for field, change := range map[string]func(*v1alpha1.TaskSpec){
		"files": func(s *v1alpha1.TaskSpec) { s.Files = []v1alpha1.File{{Path: "/a", Content: ptr.To("hush")}} },
		"preStart": func(s *v1alpha1.TaskSpec) {
			s.Process.Lifecycle = &v1alpha1.ProcessLifecycle{PreStart: &v1alpha1.LifecycleHook{Exec: v1alpha1.ExecAction{Command: []string{"x"}}}}
		},
		"postStop": func(s *v1alpha1.TaskSpec) {
			s.Process.Lifecycle = &v1alpha1.ProcessLifecycle{PostStop: &v1alpha1.LifecycleHook{Exec: v1alpha1.ExecAction{Command: []string{"x"}}}}
		},
	} {
		t.Run(field, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, func(_ *bench, w http.ResponseWriter, r *http.Request) {
				var request struct{ Spec map[string]any }
				if err := json.NewDecoder(r.Body).Decode(&request); err != nil {
					t.Error(err)
				}
				process, _ := request.Spec["process"].(map[string]any)
				if _, found := request.Spec[field]; !found && process[field] == nil {
					t.Error("it was left out")
				}
				w.WriteHeader(http.StatusBadRequest) // as that one decodes
				_ = json.NewEncoder(w).Encode(executorapi.Problem{Status: http.StatusBadRequest, Reason: executorapi.ProblemInvalid, Field: field, Detail: "there is no such field"})
			})
			change(&b.bs.Spec.TaskTemplate.Spec)
			b.follow(t)
			require.Eventually(t, func() bool { return b.Report(b.bs).Completed }, patience, poll)
			failure := b.Report(b.bs).FailedTasks[0]
			require.Equal(t, v1alpha1.ReasonRefused, failure.Reason)
			require.Equal(t, "the task executor of the sandbox is of a version of the operator that knows no files and no hooks: status 400: Invalid: "+field+": there is no such field", failure.Message)
		})
	}
}
