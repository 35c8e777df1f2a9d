// SPDX-License-Identifier: MIT

package store_test

import (
	"testing"

	"github.com/minifleet/minifleet/internal/leakcheck"
)

func TestMain(m *testing.M) { leakcheck.Main(m) }

// suite is what every engine passes.
func suite(t *testing.T, open opener) {
	for name, test := range map[string]func(*testing.T, opener){
		"Ingest": testIngest, "Lists": testLists, "Runs": testRuns, "CatchUp": testCatchUp, "FailedDeliveries": testFailedDeliveries, "Bind": testBind, "Installations": testInstallations,
		"Enrol": testEnrol, "Hello": testHello, "RemoveHost": testRemoveHost, "VersionsOfRunners": testVersionsOfRunners, "Desired": testDesired,
		"Report": testReport, "Adopt": testAdopt, "Health": testHealth,
		"Mint": testMint, "Delete": testDelete,
		"Carry": testCarry, "Concurrency": testConcurrency,
		"Paging": testPaging, "Queries": testQueries, "State": testState,
		"Prune": testPrune, "Watch": testWatch,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, open)
		})
	}
}
