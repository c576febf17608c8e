package store

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
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

func TestALogKeepsTheLastBytes(t *testing.T) {
	const size = 1000
	s := open(t)
	require.NoError(t, s.Save(record("a")))
	log, err := s.CreateLog("a", Stdout, size)
	require.NoError(t, err)
	defer log.Close()
	random := rand.New(rand.NewPCG(1, 2))
	var all []byte
	for range 300 {
		chunk := make([]byte, random.IntN(30))
		if random.IntN(20) == 0 {
			chunk = make([]byte, random.IntN(3*size))
		}
		for i := range chunk {
			chunk[i] = byte(random.Uint32())
		}
		n, err := log.Write(chunk)
		require.NoError(t, err)
		require.Equal(t, len(chunk), n)
		all = append(all, chunk...)
		for _, tail := range []int64{0, 1, 100, size, 2 * size, -1} {
			got, err := log.Tail(tail)
			require.NoError(t, err)
			want := all[len(all)-min(len(all), int(max(tail, 0)), size):]
			require.True(t, bytes.Equal(want, got), "tail %d of %d", tail, len(all))
			fromFile, err := s.ReadLog("a", Stdout, tail)
			require.NoError(t, err)
			require.True(t, bytes.Equal(want, fromFile))
		}
	}
	missing, err := s.ReadLog("a", Stderr, 10)
	require.NoError(t, err)
	assert.Empty(t, missing)
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

func FuzzLogFile(f *testing.F) {
	f.Add([]byte("osblog1\n"), int64(5))
	f.Add(append([]byte("osblog1\n\x08\x00\x00\x00\x00\x00\x00\x00\x09\x00\x00\x00\x00\x00\x00\x00"), "abcdefgh"...), int64(100))
	f.Add(append([]byte("osblog1\n\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"), "abcdefgh"...), int64(100))
	s := open(f)
	require.NoError(f, s.Save(record("a")))
	f.Fuzz(func(t *testing.T, data []byte, tail int64) {
		require.NoError(t, os.WriteFile(s.logPath("a", Stdout), data, 0o600))
		got, err := s.ReadLog("a", Stdout, tail)
		if err == nil {
			require.LessOrEqual(t, len(got), len(data))
		}
	})
}
