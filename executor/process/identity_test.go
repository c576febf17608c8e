package process_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/opensandbox/operator/executor/api"
	"github.com/opensandbox/operator/executor/fakesandbox"
)

// The fields of /proc/PID/status in which a task must equal the sandbox
// container's first process.
var identity = []string{"Umask", "Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "SigBlk", "SigIgn"}

func fields(status string) map[string]string {
	all := map[string]string{}
	for line := range strings.Lines(status) {
		key, value, _ := strings.Cut(line, ":")
		all[key] = strings.Join(strings.Fields(value), " ")
	}
	picked := map[string]string{}
	for _, key := range identity {
		picked[key] = all[key]
	}
	return picked
}

func TestATaskIsWhatTheSandboxIs(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		options fakesandbox.Options
	}{
		{"root", fakesandbox.Options{}},
		{"root in groups", fakesandbox.Options{Groups: []int{5, 6, 7}}},
		{"root without capabilities", fakesandbox.Options{Bounding: 1 << 63}},
		{"an unprivileged user", fakesandbox.Options{UID: 1000, GID: 1000, Groups: []int{1000, 2000}}},
		{"an unprivileged user without new privileges", fakesandbox.Options{UID: 1000, GID: 1001, NoNewPrivs: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, c.options)
			want, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", f.sandbox.PID))
			require.NoError(t, err)
			task := f.run(f.request("cat", "/proc/self/status"))
			require.Equal(t, api.Succeeded, task.State, task.Message)
			got := f.stdout.String()
			assert.Equal(t, fields(string(want)), fields(got))
			assert.Empty(t, task.MissingCapabilities)
		})
	}
}

func TestATaskHasTheSandboxEnvironmentAndDirectory(t *testing.T) {
	t.Parallel()
	fallback := []api.EnvVar{{Name: "FROM", Value: "pod"}, {Name: "POD", Value: "1"}}
	own := []string{"PATH=/bin", "FROM=process", "PROCESS=a=b"}
	for _, c := range []struct {
		name    string
		options fakesandbox.Options
		env     []api.EnvVar
		want    string
	}{
		{"its own environment", fakesandbox.Options{Env: own}, nil, "FROM=process PATH=/bin PROCESS=a=b"},
		{"the task's on top", fakesandbox.Options{Env: own}, []api.EnvVar{{Name: "FROM", Value: "x"}, {Name: "FROM", Value: "task"}, {Name: "NEW"}}, "FROM=task NEW= PATH=/bin PROCESS=a=b"},
		{"the pod's where it is hidden", fakesandbox.Options{Env: own, HideEnv: true}, nil, "FROM=pod PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin POD=1"},
		{"the pod's where it is empty", fakesandbox.Options{Env: []string{}}, nil, "FROM=pod PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin POD=1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.options.WorkingDir = "/work"
			f := newFixture(t, c.options)
			request := f.request("sh", "-c", "pwd; env | grep -v -e ^PWD= -e ^SHLVL= | sort | tr '\\n' ' '")
			request.FallbackEnv = fallback
			request.Spec.Process.Env = c.env
			task := f.run(request)
			require.Equal(t, api.Succeeded, task.State, task.Message)
			assert.Equal(t, "/work\n"+c.want+" \n", f.stdout.String())
		})
	}
}

func TestATaskGetsNothingOfTheExecutor(t *testing.T) {
	t.Setenv("EXECUTOR_SECRET", "hidden")
	f := newFixture(t, fakesandbox.Options{})
	task := f.run(f.request("sh", "-c", "ls -l /proc/self/fd | awk 'NR>1{print $9}' | tr '\\n' ' '; env"))
	require.Equal(t, api.Succeeded, task.State, task.Message)
	got := f.stdout.String()
	assert.True(t, strings.HasPrefix(got, "0 1 2 3 "), "ls itself has the fourth: %q", got)
	assert.NotContains(t, got, "EXECUTOR_SECRET")
}

func TestATaskCannotLookIntoItsSupervisor(t *testing.T) {
	t.Parallel()
	f := newFixture(t, fakesandbox.Options{})
	task := f.run(f.request("sh", "-c", "for f in root cwd exe fd/3 ns/mnt; do readlink /proc/$PPID/$f && exit 0; done; cat /proc/$PPID/environ && exit 0; exit 9"))
	assert.Equal(t, int32(9), *task.ExitCode, "%s", f.stdout.String())
}

func TestATaskThatLeavesItsChrootIsStillInTheSandbox(t *testing.T) {
	t.Parallel()
	f := newFixture(t, fakesandbox.Options{})
	outside := filepath.Join(t.TempDir(), "outside")
	require.NoError(t, os.WriteFile(outside, nil, 0o644))
	// When /proc is the root, a directory that was opened before lies outside of it, so
	// that nothing stops a walk from there to its parents.
	up := strings.Repeat("/..", 20)
	task := f.run(f.request("sh", "-c", "exec 3</; chroot /proc /self/fd/3/bin/busybox ls -d /self/fd/3"+up+"/etc/only-in-the-sandbox && ! chroot /proc /self/fd/3/bin/busybox ls -d /self/fd/3"+up+outside))
	assert.Equal(t, api.Succeeded, task.State, "%s: %s", task.Message, f.stdout.String())
}

func TestAnUnprivilegedTaskMayReopenItsOutput(t *testing.T) {
	t.Parallel()
	f := newFixture(t, fakesandbox.Options{UID: 1000, GID: 1000})
	task := f.run(f.request("sh", "-c", "echo reopened > /dev/stdout"))
	require.Equal(t, api.Succeeded, task.State, task.Message)
	assert.Equal(t, "reopened\n", f.stdout.String())
}
