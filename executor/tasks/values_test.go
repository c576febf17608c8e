package tasks_test

import (
	"encoding/base64"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/opensandbox/operator/executor/api"
)

// Values may come from Secrets. What the executor keeps and tells of a task holds none of them.
func TestNoValueIsKeptOrTold(t *testing.T) {
	t.Parallel()
	const value = "hush-9f21c"
	for name, request := range map[string]func(f *fixture) api.TaskRequest{
		"a task that succeeds": func(f *fixture) api.TaskRequest { return f.hooked("true", "true", "true") },
		"a task and a hook that fail": func(f *fixture) api.TaskRequest {
			return f.hooked("true", "exit 3", "exit 4")
		},
		"a hook that is not there": func(f *fixture) api.TaskRequest {
			r := f.hooked("true", "true", "true")
			r.Spec.Process.PostStop.Command = []string{"no-such-hook"}
			return r
		},
		"a command that is not there": func(f *fixture) api.TaskRequest { return f.request("no-such-command") },
		"a command that cannot be executed, in a PATH of the task": func(f *fixture) api.TaskRequest {
			dir := f.sandbox.Path(value)
			require.NoError(f.t, os.Mkdir(dir, 0o755))
			require.NoError(f.t, os.WriteFile(filepath.Join(dir, "plain"), nil, 0o644))
			r := f.request("plain")
			r.Spec.Process.Env = []api.EnvVar{{Name: "PATH"}, {Name: "PATH", Value: dir}}
			return r
		},
		"a command that is in no PATH, of which the first is empty": func(f *fixture) api.TaskRequest {
			r := f.request("no-such-command")
			r.Spec.Process.Env = []api.EnvVar{{Name: "PATH"}, {Name: "PATH", Value: "/" + value}}
			return r
		},
		"a file that cannot be written": func(f *fixture) api.TaskRequest {
			r := f.request("true")
			r.Spec.Files = []api.File{{Path: "/proc/x", Content: []byte(value)}}
			return r
		},
		"a file with too many bytes in its name": func(f *fixture) api.TaskRequest {
			r := f.request("true")
			r.Spec.Files = []api.File{{Path: f.sandbox.Path(strings.Repeat("x", 300)), Content: []byte(value)}}
			return r
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			r := request(f)
			r.Spec.Process.Env = append(r.Spec.Process.Env, api.EnvVar{Name: "TOKEN", Value: value})
			r.Spec.Files = append(r.Spec.Files, api.File{Path: f.sandbox.Path("token"), Mode: 0o400, Content: []byte(value)})
			told, err := json.Marshal([]any{f.run(r), f.Wait(t.Context(), api.Cursor{})})
			require.NoError(t, err)
			kept := ""
			require.NoError(t, fs.WalkDir(os.DirFS(f.dir), ".", func(path string, entry fs.DirEntry, err error) error {
				if err != nil || entry.IsDir() {
					return err
				}
				data, err := os.ReadFile(filepath.Join(f.dir, path))
				kept += path + string(data)
				return err
			}))
			require.Contains(t, kept, "digest", "it was searched")
			eventually(t, "its end is logged", func() bool { return strings.Contains(f.log.String(), "A task ended") })
			for _, text := range []string{kept, string(told), f.log.String(), f.stdout.String(), f.stderr.String()} {
				assert.NotContains(t, text, value)
				assert.NotContains(t, text, base64.StdEncoding.EncodeToString([]byte(value))[:12])
			}
		})
	}
}
