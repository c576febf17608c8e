package store

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/opensandbox/operator/executor/api"
)

func open(t testing.TB) *Store {
	t.Helper()
	s, err := Open(filepath.Join(t.TempDir(), "state"))
	require.NoError(t, err)
	return s
}

func record(id string) Record {
	code := int32(3)
	return Record{
		Version: version,
		Task:    api.Task{ID: id, State: api.Failed, ExitCode: &code, Reason: api.ReasonExitCode, Message: "\x00\uFFFD"},
		Spec:    &api.TaskSpec{Process: api.Process{Command: []string{"true"}}},
		First:   Process{PID: 7, StartTime: 9},
	}
}

func TestARecordIsReadAsItWasSaved(t *testing.T) {
	s := open(t)
	want := record("a.b-c")
	require.NoError(t, s.Save(want))
	require.NoError(t, s.Save(want), "again")
	records, setAside, err := s.Load()
	require.NoError(t, err)
	assert.Empty(t, setAside)
	assert.Equal(t, []Record{want}, records)

	require.NoError(t, s.Remove("a.b-c"))
	require.NoError(t, s.Remove("a.b-c"), "again")
	records, _, err = s.Load()
	require.NoError(t, err)
	assert.Empty(t, records)
}

func TestAnUnsafeIDIsRefused(t *testing.T) {
	s := open(t)
	for _, id := range []string{"", ".", "..", "../x", "a/b", ".hidden", "a\x00"} {
		require.Error(t, s.Save(record(id)), id)
		assert.Error(t, s.Remove(id), id)
	}
}

func TestAnUnreadableRecordIsSetAside(t *testing.T) {
	for name, content := range map[string]string{
		"empty":            "",
		"cut off":          `{"version":1,"task":{"id":"a","sta`,
		"garbage":          "\x00\x01\x02",
		"of another task":  `{"version":1,"task":{"id":"b","state":"Failed"},"supervisor":{},"first":{}}`,
		"unknown state":    `{"version":1,"task":{"id":"a","state":"Odd"},"supervisor":{},"first":{}}`,
		"from the future":  `{"version":2,"task":{"id":"a","state":"Failed"},"supervisor":{},"first":{}}`,
		"an unknown field": `{"version":1,"extra":1,"task":{"id":"a","state":"Failed"}}`,
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			require.NoError(t, s.Save(record("a")))
			require.NoError(t, s.Save(record("good")))
			require.NoError(t, os.WriteFile(filepath.Join(s.Dir("a"), recordFile), []byte(content), 0o600))
			records, setAside, err := s.Load()
			require.NoError(t, err)
			assert.Len(t, setAside, 1)
			require.Len(t, records, 2)
			assert.Equal(t, api.ReasonRecordUnreadable, records[0].Task.Reason)
			assert.Nil(t, records[0].Spec)
			assert.Equal(t, record("good"), records[1])
			aside, err := os.ReadDir(filepath.Join(s.dir, unreadableDir))
			require.NoError(t, err)
			assert.Len(t, aside, 1)

			_, setAside, err = s.Load()
			require.NoError(t, err)
			assert.Empty(t, setAside, "only once")
		})
	}
}

func TestWhatAnInterruptedSaveLeavesIsIgnored(t *testing.T) {
	s := open(t)
	require.NoError(t, s.Save(record("a")))
	require.NoError(t, os.WriteFile(filepath.Join(s.Dir("a"), recordFile+".tmp"), []byte("{"), 0o600))
	require.NoError(t, os.Mkdir(filepath.Join(s.dir, tasksDir, ".b"), 0o700)) // an interrupted Remove
	records, setAside, err := s.Load()
	require.NoError(t, err)
	assert.Empty(t, setAside)
	assert.Equal(t, []Record{record("a")}, records)
}

func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"version":1,"task":{"id":"a","state":"Running"},"spec":{"process":{"command":["x"]}},"supervisor":{"pid":1,"startTime":2},"first":{}}`))
	f.Add([]byte(`{"version":1,"task":{"id":"a","state":"Failed","exitCode":-1}}`))
	f.Add([]byte(``))
	f.Add([]byte(`{"version":1`))
	f.Add([]byte(`{"version":1,"task":{"id":"../a","state":"Failed"}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := decode("a", data)
		if err != nil {
			return
		}
		require.Equal(t, "a", r.Task.ID)
		text, err := json.Marshal(r)
		require.NoError(t, err)
		again, err := decode("a", text)
		require.NoError(t, err, "what was read can be saved and read again")
		require.Equal(t, r.Task.State, again.Task.State)
		require.Equal(t, r.First, again.First)
		require.Equal(t, r.Spec == nil, again.Spec == nil)
	})
}
