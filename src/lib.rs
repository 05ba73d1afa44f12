//! symroute: replies leave a node by the NIC the request came in by.
